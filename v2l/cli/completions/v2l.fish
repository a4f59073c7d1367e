# Completion of v2l's command line in fish. Written by completions/generate.py; change that file instead.

# Whether the command is the one named; without a name, whether there is none yet.
function __v2l_in
    for word in (commandline -opc)[2..]
        string match -q -- '-*' $word; and continue
        test "$word" = "$argv[1]"
        return
    end
    test -z "$argv[1]"
end

# Folders, and files that end in one of the suffixes. fish itself completes what was typed, so that its quotes count.
function __v2l_paths
    set -l token (commandline -ct | string replace -r -- '^--[^=]*=' '')
    set -l ends (string escape --style=regex -- / $argv | string join '|')
    complete -C "__fish_command_without_completions $token" | string match -rei -- "^[^\t]*(?:$ends)(?:\t|\$)"
end

function __v2l_ablations
    printf '%s\n' ranks layers times
end

function __v2l_adapters
    __v2l_paths .v2l.safetensors
end

function __v2l_architectures
    printf '%s\n' smolvlm2-500m smolvlm2-2.2b
end

function __v2l_benchmarks
    printf '%s\n' activitynet-captions plm-rdcap plm-rcap vdc carebench nextqa activitynet-qa plm-sgqa vidcapbench
end

function __v2l_checkpoints
    __v2l_paths .pt
end

function __v2l_devices
    printf '%s\n' cpu cuda mps
end

function __v2l_dtypes
    printf '%s\n' float32 bfloat16 float16
end

function __v2l_files
    __v2l_paths ''
end

function __v2l_formats
    printf '%s\n' peft gguf
end

function __v2l_folders
    __v2l_paths
end

function __v2l_images
    __v2l_paths .pdf .png .svg
end

function __v2l_commands
    printf '%s\n' encode ask find frames demo compose info verify export pull import bench eval train completion help
end

function __v2l_controls
    printf '%s\n' in_context nothing bias other_clip
end

function __v2l_manifests
    __v2l_paths .jsonl
end

function __v2l_metrics
    printf '%s\n' exact f1 rouge_l judge
end

function __v2l_models
    printf '%s\n' tiny smolvlm2-500m smolvlm2-2.2b
    __v2l_paths
end

function __v2l_papers
    printf '%s\n' 500m 2.2b
end

function __v2l_safetensors
    __v2l_paths .safetensors
end

function __v2l_shells
    printf '%s\n' bash zsh fish
end

function __v2l_tables
    __v2l_paths .csv
end

function __v2l_subjects
    __v2l_paths .v2l.safetensors .3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv
end

function __v2l_videos
    __v2l_paths .3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv
end

function __v2l_weights
    __v2l_paths .pt .safetensors
end

complete -c v2l -f
complete -c v2l -n '__v2l_in' -a encode -d 'Encode videos into adapters'
complete -c v2l -n '__v2l_in' -a ask -d 'Answer questions about encoded videos'
complete -c v2l -n '__v2l_in' -a find -d 'Find the segments of videos that match a text, best first'
complete -c v2l -n '__v2l_in' -a frames -d 'Write the pictures that an adapter was made from'
complete -c v2l -n '__v2l_in' -a demo -d 'Show how it works, with nothing but what is installed'
complete -c v2l -n '__v2l_in' -a compose -d 'Compose several adapters into one'
complete -c v2l -n '__v2l_in' -a info -d 'Describe adapters, hypernetworks and videos'
complete -c v2l -n '__v2l_in' -a verify -d 'Check that adapters, or a model and its hypernetwork, are sound and have an effect'
complete -c v2l -n '__v2l_in' -a export -d 'Convert an adapter to the format of another engine'
complete -c v2l -n '__v2l_in' -a pull -d 'Fetch a frozen model and its hypernetwork'
complete -c v2l -n '__v2l_in' -a import -d 'Convert a published checkpoint to a hypernetwork file'
complete -c v2l -n '__v2l_in' -a bench -d 'Measure the cost of an answer'
complete -c v2l -n '__v2l_in' -a eval -d 'Compare adapters with the video in context'
complete -c v2l -n '__v2l_in' -a train -d 'Train a hypernetwork for a frozen model'
complete -c v2l -n '__v2l_in' -a completion -d 'Print the file by which a shell completes the command line of v2l'
complete -c v2l -n '__v2l_in' -a help -d 'Print the help of v2l, or of a command'

complete -c v2l -n '__v2l_in' -l version -s V -d 'Print the versions of v2l and of the libraries that it uses'
complete -c v2l -n '__v2l_in' -l json -d 'Print the versions as JSON'
complete -c v2l -n '__v2l_in' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in encode' -a '(__v2l_videos)'
complete -c v2l -n '__v2l_in encode' -l recursive -s r -d 'Search subfolders as well'
complete -c v2l -n '__v2l_in encode' -l files-from -x -a '(__v2l_files)' -d 'Read more inputs from a list, one per line or separated by NUL; - is standard input'
complete -c v2l -n '__v2l_in encode' -l frames -x -d 'Read at most N frames'
complete -c v2l -n '__v2l_in encode' -l fps -x -d 'Read RATE frames per second of video, as far as --frames allows'
complete -c v2l -n '__v2l_in encode' -l start -x -d 'Start at TIME, in seconds or as H:MM:SS'
complete -c v2l -n '__v2l_in encode' -l end -x -d 'Stop at TIME, in seconds or as H:MM:SS'
complete -c v2l -n '__v2l_in encode' -l resolution -x -d 'Scale the longest edge of a frame to PIXELS'
complete -c v2l -n '__v2l_in encode' -l keep-damaged -d 'Use damaged frames as a player shows them, and record that in the adapter'
complete -c v2l -n '__v2l_in encode' -l shard -x -d 'Encode share I of N of the inputs; auto reads both from a Slurm job array'
complete -c v2l -n '__v2l_in encode' -l segments -x -d 'Cut each video into N segments in one file; 1 is a single encoding'
complete -c v2l -n '__v2l_in encode' -l segment-seconds -x -d 'Cut each video into segments of S seconds'
complete -c v2l -n '__v2l_in encode' -l split -d 'Write a file for each segment, NAME.000 and on'
complete -c v2l -n '__v2l_in encode' -l no-index -d 'Leave out the descriptions of the segments, which v2l find searches'
complete -c v2l -n '__v2l_in encode' -l output -s o -x -a '(__v2l_adapters)' -d 'Write the adapter of a single video to FILE'
complete -c v2l -n '__v2l_in encode' -l output-dir -x -a '(__v2l_folders)' -d 'Write all adapters into FOLDER, with the subfolders of the videos'
complete -c v2l -n '__v2l_in encode' -l cache -d 'Keep the adapters in your cache folder, by the contents of the videos; V2L_CACHE names another folder'
complete -c v2l -n '__v2l_in encode' -l check-hash -d 'Compare the contents of videos, not their sizes and times, to find adapters that are out of date'
complete -c v2l -n '__v2l_in encode' -l overwrite -d 'Encode again in any case, and replace whatever is at the place of an adapter'
complete -c v2l -n '__v2l_in encode' -l fail-fast -d 'Stop at the first video that fails'
complete -c v2l -n '__v2l_in encode' -l dry-run -d 'Encode nothing; print what would be encoded, why, and its cost'
complete -c v2l -n '__v2l_in encode' -l model -s m -x -a '(__v2l_models)' -d 'Use this preset or model folder'
complete -c v2l -n '__v2l_in encode' -l hypernetwork -x -a '(__v2l_weights)' -d 'Use this hypernetwork'
complete -c v2l -n '__v2l_in encode' -l device -x -a '(__v2l_devices)' -d 'Run on this device, such as cpu, cuda, cuda:1 or mps'
complete -c v2l -n '__v2l_in encode' -l dtype -x -a '(__v2l_dtypes)' -d 'Load the model in float32, bfloat16 or float16'
complete -c v2l -n '__v2l_in encode' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in encode' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in encode' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in encode' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in ask' -a '(__v2l_subjects)'
complete -c v2l -n '__v2l_in ask' -l recursive -s r -d 'Ask the adapters in subfolders as well'
complete -c v2l -n '__v2l_in ask' -l question -s q -x -d 'Ask TEXT, even if it looks like a file'
complete -c v2l -n '__v2l_in ask' -l in-context -x -a '(__v2l_videos)' -d 'Ask this video with its frames in the prompt, for comparison'
complete -c v2l -n '__v2l_in ask' -l frames -x -d 'Read at most N frames'
complete -c v2l -n '__v2l_in ask' -l fps -x -d 'Read RATE frames per second of video, as far as --frames allows'
complete -c v2l -n '__v2l_in ask' -l start -x -d 'Start at TIME, in seconds or as H:MM:SS'
complete -c v2l -n '__v2l_in ask' -l end -x -d 'Stop at TIME, in seconds or as H:MM:SS'
complete -c v2l -n '__v2l_in ask' -l resolution -x -d 'Scale the longest edge of a frame to PIXELS'
complete -c v2l -n '__v2l_in ask' -l max-new-tokens -x -d 'Generate at most N tokens'
complete -c v2l -n '__v2l_in ask' -l strength -x -d 'Scale the change that the adapter makes by X; 1 leaves it as encoded'
complete -c v2l -n '__v2l_in ask' -l whole -d 'Answer from all segments, even if a question names a time'
complete -c v2l -n '__v2l_in ask' -l each -d 'Ask every segment, and join equal neighbours'
complete -c v2l -n '__v2l_in ask' -l format -x -a '(__v2l_formats)' -d 'With --each: print times in seconds, or subtitles: tsv, srt or vtt'
complete -c v2l -n '__v2l_in ask' -l raw -d 'Print control characters in answers without escaping'
complete -c v2l -n '__v2l_in ask' -l model -s m -x -a '(__v2l_models)' -d 'Use this preset or model folder'
complete -c v2l -n '__v2l_in ask' -l hypernetwork -x -a '(__v2l_weights)' -d 'Use this hypernetwork'
complete -c v2l -n '__v2l_in ask' -l device -x -a '(__v2l_devices)' -d 'Run on this device, such as cpu, cuda, cuda:1 or mps'
complete -c v2l -n '__v2l_in ask' -l dtype -x -a '(__v2l_dtypes)' -d 'Load the model in float32, bfloat16 or float16'
complete -c v2l -n '__v2l_in ask' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in ask' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in ask' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in ask' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in find' -a '(__v2l_adapters)'
complete -c v2l -n '__v2l_in find' -l recursive -s r -d 'Search subfolders, too'
complete -c v2l -n '__v2l_in find' -l limit -s n -x -d 'Print at most N segments'
complete -c v2l -n '__v2l_in find' -l question -x -d 'Rank by the likelihood of --answer to this question, instead of by words'
complete -c v2l -n '__v2l_in find' -l answer -x -d 'The answer to --question'
complete -c v2l -n '__v2l_in find' -l model -s m -x -a '(__v2l_models)' -d 'Use this preset or model folder'
complete -c v2l -n '__v2l_in find' -l device -x -a '(__v2l_devices)' -d 'Run on this device, such as cpu, cuda, cuda:1 or mps'
complete -c v2l -n '__v2l_in find' -l dtype -x -a '(__v2l_dtypes)' -d 'Load the model in float32, bfloat16 or float16'
complete -c v2l -n '__v2l_in find' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in find' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in find' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in find' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in frames' -a '(__v2l_adapters)'
complete -c v2l -n '__v2l_in frames' -l at -x -d 'Take the segment that shows TIME, in seconds or as H:MM:SS'
complete -c v2l -n '__v2l_in frames' -l segment -x -d 'Take segment N, counted from 0'
complete -c v2l -n '__v2l_in frames' -l video -x -a '(__v2l_videos)' -d 'Read the frames from FILE'
complete -c v2l -n '__v2l_in frames' -l output-dir -s o -x -a '(__v2l_folders)' -d 'Write each frame to DIR, as a PNG named by its time'
complete -c v2l -n '__v2l_in frames' -l strip -x -a '(__v2l_images)' -d 'Write one picture with all frames small and their times below'
complete -c v2l -n '__v2l_in frames' -l overwrite -d 'Replace a file that exists already'
complete -c v2l -n '__v2l_in frames' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in frames' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in frames' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in frames' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in demo' -a '(__v2l_videos)'
complete -c v2l -n '__v2l_in demo' -l output-dir -x -a '(__v2l_folders)' -d 'Write the lecture and its adapter into FOLDER, or the adapter of VIDEO'
complete -c v2l -n '__v2l_in demo' -l overwrite -d 'Replace a file that exists already'
complete -c v2l -n '__v2l_in demo' -l model -s m -x -a '(__v2l_models)' -d 'Use this preset or model folder'
complete -c v2l -n '__v2l_in demo' -l hypernetwork -x -a '(__v2l_weights)' -d 'Use this hypernetwork'
complete -c v2l -n '__v2l_in demo' -l device -x -a '(__v2l_devices)' -d 'Run on this device, such as cpu, cuda, cuda:1 or mps'
complete -c v2l -n '__v2l_in demo' -l dtype -x -a '(__v2l_dtypes)' -d 'Load the model in float32, bfloat16 or float16'
complete -c v2l -n '__v2l_in demo' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in demo' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in demo' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in demo' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in compose' -a '(__v2l_adapters)'
complete -c v2l -n '__v2l_in compose' -l output -s o -x -a '(__v2l_adapters)' -d 'Write the composed adapter'
complete -c v2l -n '__v2l_in compose' -l rank -x -d 'Reduce the generated ranks by singular value decomposition: to N in total, or to N for each segment of a timeline'
complete -c v2l -n '__v2l_in compose' -l overwrite -d 'Replace a file that exists already'
complete -c v2l -n '__v2l_in compose' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in compose' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in compose' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in compose' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in info' -a '(__v2l_weights)'
complete -c v2l -n '__v2l_in info' -l timeline -d 'List the segments of timelines and the answers of their index'
complete -c v2l -n '__v2l_in info' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in info' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in info' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in info' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in verify' -a '(__v2l_adapters)'
complete -c v2l -n '__v2l_in verify' -l video -x -a '(__v2l_videos)' -d 'Prove the model and its hypernetwork on this video'
complete -c v2l -n '__v2l_in verify' -l model -s m -x -a '(__v2l_models)' -d 'Use this preset or model folder'
complete -c v2l -n '__v2l_in verify' -l hypernetwork -x -a '(__v2l_weights)' -d 'Use this hypernetwork'
complete -c v2l -n '__v2l_in verify' -l device -x -a '(__v2l_devices)' -d 'Run on this device, such as cpu, cuda, cuda:1 or mps'
complete -c v2l -n '__v2l_in verify' -l dtype -x -a '(__v2l_dtypes)' -d 'Load the model in float32, bfloat16 or float16'
complete -c v2l -n '__v2l_in verify' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in verify' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in verify' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in verify' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in export' -a '(__v2l_adapters)'
complete -c v2l -n '__v2l_in export' -l format -x -a '(__v2l_formats)' -d 'Export for transformers and vLLM (peft), or for llama.cpp (gguf)'
complete -c v2l -n '__v2l_in export' -l output -s o -x -a '(__v2l_files)' -d 'Write a folder for peft, or a .gguf file for gguf'
complete -c v2l -n '__v2l_in export' -l at -x -d 'Export the segment of a timeline that shows TIME'
complete -c v2l -n '__v2l_in export' -l segment -x -d 'Export segment N of a timeline, counted from 0'
complete -c v2l -n '__v2l_in export' -l overwrite -d 'Replace a file that exists already'
complete -c v2l -n '__v2l_in export' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in export' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in export' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in export' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in pull' -a '(__v2l_architectures)'
complete -c v2l -n '__v2l_in pull' -l revision -x -d 'Fetch this branch, tag or commit of the model'
complete -c v2l -n '__v2l_in pull' -l dtype -x -a '(__v2l_dtypes)' -d 'Store the model in bfloat16 or float16, half the size, instead of float32 as published'
complete -c v2l -n '__v2l_in pull' -l default -d 'Use the preset if no model is named'
complete -c v2l -n '__v2l_in pull' -l yes -s y -d 'Download without asking on a terminal'
complete -c v2l -n '__v2l_in pull' -l no-proof -d 'Leave out the proof, which takes minutes on a CPU'
complete -c v2l -n '__v2l_in pull' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in pull' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in pull' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in pull' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in import' -a '(__v2l_checkpoints)'
complete -c v2l -n '__v2l_in import' -l output -s o -x -a '(__v2l_safetensors)' -d 'Write the hypernetwork as .safetensors'
complete -c v2l -n '__v2l_in import' -l overwrite -d 'Replace a file that exists already'
complete -c v2l -n '__v2l_in import' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in import' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in import' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in import' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in bench' -a '(__v2l_videos)'
complete -c v2l -n '__v2l_in bench' -l frames -x -d 'Read N frames of the video'
complete -c v2l -n '__v2l_in bench' -l resolution -x -d 'Scale the longest edge of a frame to PIXELS'
complete -c v2l -n '__v2l_in bench' -l segments -x -d 'Compose the adapter from N segments'
complete -c v2l -n '__v2l_in bench' -l questions -x -d 'Spread the cost of preparation over up to N questions about the video'
complete -c v2l -n '__v2l_in bench' -l repeats -x -d 'Repeat each measurement N times'
complete -c v2l -n '__v2l_in bench' -l new-tokens -x -d 'Generate N tokens, to time those after the first'
complete -c v2l -n '__v2l_in bench' -l budget -x -d 'Start no measurement after this time'
complete -c v2l -n '__v2l_in bench' -l output -s o -x -a '(__v2l_manifests)' -d 'Append measurements to FILE, and resume from it'
complete -c v2l -n '__v2l_in bench' -l csv -x -a '(__v2l_tables)' -d 'Write all measurements as one table'
complete -c v2l -n '__v2l_in bench' -l plot -x -a '(__v2l_images)' -d 'Draw pictures of the tables, further ones beside FILE (.png, .svg or .pdf)'
complete -c v2l -n '__v2l_in bench' -l arch -x -a '(__v2l_architectures)' -d 'Build smolvlm2-500m or smolvlm2-2.2b in memory; needs --random-weights'
complete -c v2l -n '__v2l_in bench' -l random-weights -d 'Use random weights: times and sizes are measured, answers mean nothing'
complete -c v2l -n '__v2l_in bench' -l model -s m -x -a '(__v2l_models)' -d 'Use this preset or model folder'
complete -c v2l -n '__v2l_in bench' -l hypernetwork -x -a '(__v2l_weights)' -d 'Use this hypernetwork'
complete -c v2l -n '__v2l_in bench' -l device -x -a '(__v2l_devices)' -d 'Run on this device, such as cpu, cuda, cuda:1 or mps'
complete -c v2l -n '__v2l_in bench' -l dtype -x -a '(__v2l_dtypes)' -d 'Load the model in float32, bfloat16 or float16'
complete -c v2l -n '__v2l_in bench' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in bench' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in bench' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in bench' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in eval' -a '(__v2l_manifests)'
complete -c v2l -n '__v2l_in eval' -l benchmark -x -a '(__v2l_benchmarks)' -d 'Answer a benchmark of the paper instead, whose files are in --root: activitynet-captions, plm-rdcap, plm-rcap, vdc, carebench, nextqa, activitynet-qa, plm-sgqa or vidcapbench'
complete -c v2l -n '__v2l_in eval' -l root -x -a '(__v2l_folders)' -d 'Resolve the relative paths of videos against FOLDER'
complete -c v2l -n '__v2l_in eval' -l frames -x -d 'Read at most N frames'
complete -c v2l -n '__v2l_in eval' -l resolution -x -d 'Scale the longest edge of a frame to PIXELS'
complete -c v2l -n '__v2l_in eval' -l segments -x -d 'Compose each adapter from N segments'
complete -c v2l -n '__v2l_in eval' -l timeline -d 'Encode long clips into timelines, as encode does'
complete -c v2l -n '__v2l_in eval' -l segment-seconds -x -d 'Cut each timeline into segments of S seconds'
complete -c v2l -n '__v2l_in eval' -l output -s o -x -a '(__v2l_manifests)' -d 'Append the answers to FILE, and resume from it'
complete -c v2l -n '__v2l_in eval' -l plot -x -a '(__v2l_images)' -d 'Draw pictures of the tables, further ones beside FILE (.png, .svg or .pdf)'
complete -c v2l -n '__v2l_in eval' -l without -x -a '(__v2l_controls)' -d 'Leave out in_context, nothing, bias or other_clip'
complete -c v2l -n '__v2l_in eval' -l ablate -x -a '(__v2l_ablations)' -d 'Answer also from parts of the adapter, or ignoring times: ranks, layers or times'
complete -c v2l -n '__v2l_in eval' -l max-new-tokens -x -d 'Generate at most N tokens'
complete -c v2l -n '__v2l_in eval' -l metric -x -a '(__v2l_metrics)' -d 'Show this score in the tables: exact, f1, rouge_l or judge'
complete -c v2l -n '__v2l_in eval' -l paper -x -a '(__v2l_papers)' -d 'Show the results of the paper below the measured ones: 500m or 2.2b'
complete -c v2l -n '__v2l_in eval' -l judge -x -d 'Score the answers with an OpenAI-compatible server; V2L_JUDGE_KEY holds its key'
complete -c v2l -n '__v2l_in eval' -l judge-model -x -d 'Use the model NAME of that server'
complete -c v2l -n '__v2l_in eval' -l set -x -d 'Change one of these settings'
complete -c v2l -n '__v2l_in eval' -l model -s m -x -a '(__v2l_models)' -d 'Use this preset or model folder'
complete -c v2l -n '__v2l_in eval' -l hypernetwork -x -a '(__v2l_weights)' -d 'Use this hypernetwork'
complete -c v2l -n '__v2l_in eval' -l device -x -a '(__v2l_devices)' -d 'Run on this device, such as cpu, cuda, cuda:1 or mps'
complete -c v2l -n '__v2l_in eval' -l dtype -x -a '(__v2l_dtypes)' -d 'Load the model in float32, bfloat16 or float16'
complete -c v2l -n '__v2l_in eval' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in eval' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in eval' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in eval' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in train' -a '(__v2l_manifests)'
complete -c v2l -n '__v2l_in train' -l output -s o -x -a '(__v2l_folders)' -d 'Keep the run in FOLDER, and resume the run that it holds'
complete -c v2l -n '__v2l_in train' -l validation -x -a '(__v2l_manifests)' -d 'Choose the best hypernetwork by its loss on MANIFEST'
complete -c v2l -n '__v2l_in train' -l root -x -a '(__v2l_folders)' -d 'Resolve the relative paths of videos against FOLDER'
complete -c v2l -n '__v2l_in train' -l frames -x -d 'Read at most N frames of a clip or a segment'
complete -c v2l -n '__v2l_in train' -l fps -x -d 'Read RATE frames per second of video, as far as --frames allows'
complete -c v2l -n '__v2l_in train' -l resolution -x -d 'Scale the longest edge of a frame to PIXELS'
complete -c v2l -n '__v2l_in train' -l teacher -d 'Learn the answers of the frozen model in context, not those of the manifest'
complete -c v2l -n '__v2l_in train' -l steps -x -d 'Take N optimisation steps'
complete -c v2l -n '__v2l_in train' -l batch -x -d 'Use N clips in a step, over all processes'
complete -c v2l -n '__v2l_in train' -l learning-rate -x -d 'Set the peak of the learning rate'
complete -c v2l -n '__v2l_in train' -l seed -x -d 'Seed the weights, the order of clips and their sampling'
complete -c v2l -n '__v2l_in train' -l set -x -d 'Change one of these settings'
complete -c v2l -n '__v2l_in train' -l model -s m -x -a '(__v2l_models)' -d 'Use this preset or model folder'
complete -c v2l -n '__v2l_in train' -l hypernetwork -x -a '(__v2l_weights)' -d 'Use this hypernetwork'
complete -c v2l -n '__v2l_in train' -l device -x -a '(__v2l_devices)' -d 'Run on this device, such as cpu, cuda, cuda:1 or mps'
complete -c v2l -n '__v2l_in train' -l dtype -x -a '(__v2l_dtypes)' -d 'Load the model in float32, bfloat16 or float16'
complete -c v2l -n '__v2l_in train' -l json -d 'Print one JSON object per line instead of text'
complete -c v2l -n '__v2l_in train' -l quiet -d 'Print no notes and no progress, except that tiny is for demonstration'
complete -c v2l -n '__v2l_in train' -l verbose -l debug -s v -d 'Print what is loaded and done, with the seconds since the start, and the traceback of an error'
complete -c v2l -n '__v2l_in train' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in completion' -a '(__v2l_shells)'
complete -c v2l -n '__v2l_in completion' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in help' -a '(__v2l_commands)'
complete -c v2l -n '__v2l_in help' -l help -s h -d 'Show this message and exit'
