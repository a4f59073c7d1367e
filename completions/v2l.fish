# Completion of v2l's command line in fish. Written by completions/generate.py, which changes it.

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
complete -c v2l -n '__v2l_in' -a encode -d 'Read videos once, write an adapter beside each'
complete -c v2l -n '__v2l_in' -a ask -d 'Answer questions about encoded videos'
complete -c v2l -n '__v2l_in' -a bench -d 'Measure what an adapter saves, and what it does not'
complete -c v2l -n '__v2l_in' -a eval -d 'Hold adapters against the video in context'
complete -c v2l -n '__v2l_in' -a train -d 'Train a hypernetwork for a frozen model'
complete -c v2l -n '__v2l_in' -a demo -d 'See it work, with nothing but what is installed'
complete -c v2l -n '__v2l_in' -a compose -d 'Put several adapters into one'
complete -c v2l -n '__v2l_in' -a info -d 'Say what is in a file'
complete -c v2l -n '__v2l_in' -a pull -d 'Fetch a frozen model and its hypernetwork'
complete -c v2l -n '__v2l_in' -a verify -d 'Prove that adapters are sound and move the model they name'
complete -c v2l -n '__v2l_in' -a export -d 'Write an adapter as other engines read it'
complete -c v2l -n '__v2l_in' -a import -d 'Turn a published checkpoint into v2l\'s own file'

complete -c v2l -n '__v2l_in' -l version -d 'Versions of v2l and what it stands on'
complete -c v2l -n '__v2l_in' -l json -d 'The versions as JSON'
complete -c v2l -n '__v2l_in' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in encode' -a '(__v2l_videos)'
complete -c v2l -n '__v2l_in encode' -l recursive -s r -d 'Folders in folders too'
complete -c v2l -n '__v2l_in encode' -l files-from -x -a '(__v2l_files)' -d 'More inputs from a list, one a line or NUL-separated'
complete -c v2l -n '__v2l_in encode' -l frames -x -d 'At most this many frames; else as trained'
complete -c v2l -n '__v2l_in encode' -l fps -x -d 'Frames per second of video to aim for; else as trained'
complete -c v2l -n '__v2l_in encode' -l start -x -d 'From here on; seconds, or H:MM:SS'
complete -c v2l -n '__v2l_in encode' -l end -x -d 'Up to here; seconds, or H:MM:SS'
complete -c v2l -n '__v2l_in encode' -l resolution -x -d 'Pixels of a frame\'s longest edge; more than the model\'s image is tiled'
complete -c v2l -n '__v2l_in encode' -l segments -x -d 'Cut each video into N adapters'
complete -c v2l -n '__v2l_in encode' -l segment-seconds -x -d 'Cut into adapters of S seconds'
complete -c v2l -n '__v2l_in encode' -l compose -d 'Also write the segments as one adapter'
complete -c v2l -n '__v2l_in encode' -l output -s o -x -a '(__v2l_adapters)' -d 'The adapter of the one video'
complete -c v2l -n '__v2l_in encode' -l output-dir -x -a '(__v2l_folders)' -d 'A folder for all adapters'
complete -c v2l -n '__v2l_in encode' -l keep-damaged -d 'Take damaged frames as a player shows them, with a note'
complete -c v2l -n '__v2l_in encode' -l check-hash -d 'Compare contents, not sizes and times'
complete -c v2l -n '__v2l_in encode' -l overwrite -d 'Encode again whatever is there'
complete -c v2l -n '__v2l_in encode' -l fail-fast -d 'Stop at the first failure'
complete -c v2l -n '__v2l_in encode' -l shard -x -d 'This machine\'s share of N; auto reads Slurm\'s job array'
complete -c v2l -n '__v2l_in encode' -l model -s m -x -a '(__v2l_models)' -d 'A preset or a model folder; else V2L_MODEL'
complete -c v2l -n '__v2l_in encode' -l hypernetwork -x -a '(__v2l_weights)' -d 'Its hypernetwork, where the model\'s own is not meant'
complete -c v2l -n '__v2l_in encode' -l device -x -a '(__v2l_devices)' -d 'cpu, cuda, cuda:1, mps; else the best there'
complete -c v2l -n '__v2l_in encode' -l dtype -x -a '(__v2l_dtypes)' -d 'Else bfloat16 on CUDA, float32 elsewhere'
complete -c v2l -n '__v2l_in encode' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in encode' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in encode' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in encode' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in ask' -a '(__v2l_subjects)'
complete -c v2l -n '__v2l_in ask' -l question -s q -x -d 'A question, whatever it looks like'
complete -c v2l -n '__v2l_in ask' -l in-context -x -a '(__v2l_videos)' -d 'Ask this video the expensive way, for comparison'
complete -c v2l -n '__v2l_in ask' -l frames -x -d 'At most this many frames; else as trained'
complete -c v2l -n '__v2l_in ask' -l fps -x -d 'Frames per second of video to aim for; else as trained'
complete -c v2l -n '__v2l_in ask' -l start -x -d 'From here on; seconds, or H:MM:SS'
complete -c v2l -n '__v2l_in ask' -l end -x -d 'Up to here; seconds, or H:MM:SS'
complete -c v2l -n '__v2l_in ask' -l resolution -x -d 'Pixels of a frame\'s longest edge; more than the model\'s image is tiled'
complete -c v2l -n '__v2l_in ask' -l max-new-tokens -x -d 'The longest answer'
complete -c v2l -n '__v2l_in ask' -l strength -x -d 'How much of the adapter to wear'
complete -c v2l -n '__v2l_in ask' -l whole -d 'All segments answer, whatever time a question asks about'
complete -c v2l -n '__v2l_in ask' -l no-stream -d 'Whole answers only'
complete -c v2l -n '__v2l_in ask' -l raw -d 'Answers\' control characters as they are, not escaped'
complete -c v2l -n '__v2l_in ask' -l model -s m -x -a '(__v2l_models)' -d 'A preset or a model folder; else V2L_MODEL'
complete -c v2l -n '__v2l_in ask' -l hypernetwork -x -a '(__v2l_weights)' -d 'Its hypernetwork, where the model\'s own is not meant'
complete -c v2l -n '__v2l_in ask' -l device -x -a '(__v2l_devices)' -d 'cpu, cuda, cuda:1, mps; else the best there'
complete -c v2l -n '__v2l_in ask' -l dtype -x -a '(__v2l_dtypes)' -d 'Else bfloat16 on CUDA, float32 elsewhere'
complete -c v2l -n '__v2l_in ask' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in ask' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in ask' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in ask' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in bench' -a '(__v2l_videos)'
complete -c v2l -n '__v2l_in bench' -l frames -x -d 'Frames of the video, a sweep if several'
complete -c v2l -n '__v2l_in bench' -l resolution -x -d 'Of a frame\'s longest edge; else as trained'
complete -c v2l -n '__v2l_in bench' -l segments -x -d 'Compose the adapter from N segments\' adapters'
complete -c v2l -n '__v2l_in bench' -l arch -x -a '(__v2l_architectures)' -d 'Build this architecture in memory; needs --random-weights'
complete -c v2l -n '__v2l_in bench' -l random-weights -d 'Its weights mean nothing: times and sizes alone'
complete -c v2l -n '__v2l_in bench' -l questions -x -d 'Amortize over up to N questions a video'
complete -c v2l -n '__v2l_in bench' -l repeats -x -d 'Else 30 where one takes under a second, 5 where not'
complete -c v2l -n '__v2l_in bench' -l warmup -x -d 'Runs left out before them'
complete -c v2l -n '__v2l_in bench' -l new-tokens -x -d 'Of an answer, to time those after the first'
complete -c v2l -n '__v2l_in bench' -l budget -x -d 'Begin nothing new after this time'
complete -c v2l -n '__v2l_in bench' -l output -s o -x -a '(__v2l_manifests)' -d 'Measurements as they finish; gone on from'
complete -c v2l -n '__v2l_in bench' -l csv -x -a '(__v2l_tables)' -d 'All of it as one table'
complete -c v2l -n '__v2l_in bench' -l plot -x -a '(__v2l_images)' -d 'Heat maps and the amortization curve, .png .svg'
complete -c v2l -n '__v2l_in bench' -l model -s m -x -a '(__v2l_models)' -d 'A preset or a model folder; else V2L_MODEL'
complete -c v2l -n '__v2l_in bench' -l hypernetwork -x -a '(__v2l_weights)' -d 'Its hypernetwork, where the model\'s own is not meant'
complete -c v2l -n '__v2l_in bench' -l device -x -a '(__v2l_devices)' -d 'cpu, cuda, cuda:1, mps; else the best there'
complete -c v2l -n '__v2l_in bench' -l dtype -x -a '(__v2l_dtypes)' -d 'Else bfloat16 on CUDA, float32 elsewhere'
complete -c v2l -n '__v2l_in bench' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in bench' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in bench' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in bench' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in eval' -a '(__v2l_manifests)'
complete -c v2l -n '__v2l_in eval' -l benchmark -x -a '(__v2l_benchmarks)' -d 'The paper\'s, instead of a manifest; --root has it'
complete -c v2l -n '__v2l_in eval' -l samples -x -d 'Chosen from it; else 500, or VidCapBench\'s 100 videos'
complete -c v2l -n '__v2l_in eval' -l seed -x -d 'Of that choice; else 0'
complete -c v2l -n '__v2l_in eval' -l root -x -a '(__v2l_folders)' -d 'Where video paths start; else at the manifest'
complete -c v2l -n '__v2l_in eval' -l output -s o -x -a '(__v2l_manifests)' -d 'Every answer, gone on from; else MANIFEST.eval.jsonl, or BENCHMARK.eval.jsonl here'
complete -c v2l -n '__v2l_in eval' -l metric -x -a '(__v2l_metrics)' -d 'What the tables show; else the judge, f1 for a benchmark or --paper, exact'
complete -c v2l -n '__v2l_in eval' -l margin -x -d 'For equivalence; else the paper\'s: 0.05, a judge\'s 0.15'
complete -c v2l -n '__v2l_in eval' -l paper -x -a '(__v2l_papers)' -d 'Put the paper\'s rows of that model under the measured ones'
complete -c v2l -n '__v2l_in eval' -l judge -x -d 'An OpenAI-compatible server\'s; its key from V2L_JUDGE_KEY'
complete -c v2l -n '__v2l_in eval' -l judge-model -x -d 'The judge\'s name at that server'
complete -c v2l -n '__v2l_in eval' -l rubric -x -a '(__v2l_files)' -d 'What the judge is asked; else v2l/evaluation/rubric.md'
complete -c v2l -n '__v2l_in eval' -l judge-timeout -x -d 'For one of its replies'
complete -c v2l -n '__v2l_in eval' -l judge-jobs -x -d 'Requests at once'
complete -c v2l -n '__v2l_in eval' -l without -x -a '(__v2l_controls)' -d 'A control to leave out; may be given again'
complete -c v2l -n '__v2l_in eval' -l frames -x -d 'At most this many frames; a sweep if several'
complete -c v2l -n '__v2l_in eval' -l fps -x -d 'Frames per second of video to aim for; else as trained'
complete -c v2l -n '__v2l_in eval' -l resolution -x -d 'Of a frame\'s longest edge'
complete -c v2l -n '__v2l_in eval' -l segments -x -d 'Compose each adapter from N segments\' adapters'
complete -c v2l -n '__v2l_in eval' -l in-context-frames -x -d 'The most in context; else as many as encoded'
complete -c v2l -n '__v2l_in eval' -l ablate -x -a '(__v2l_ablations)' -d 'Answer also with some ranks, without a layer, or with times ignored'
complete -c v2l -n '__v2l_in eval' -l plot -x -a '(__v2l_images)' -d 'What the tables say as an image, .png .svg'
complete -c v2l -n '__v2l_in eval' -l max-new-tokens -x -d 'The longest answer; else 64, 128 for a benchmark'
complete -c v2l -n '__v2l_in eval' -l model -s m -x -a '(__v2l_models)' -d 'A preset or a model folder; else V2L_MODEL'
complete -c v2l -n '__v2l_in eval' -l hypernetwork -x -a '(__v2l_weights)' -d 'Its hypernetwork, where the model\'s own is not meant'
complete -c v2l -n '__v2l_in eval' -l device -x -a '(__v2l_devices)' -d 'cpu, cuda, cuda:1, mps; else the best there'
complete -c v2l -n '__v2l_in eval' -l dtype -x -a '(__v2l_dtypes)' -d 'Else bfloat16 on CUDA, float32 elsewhere'
complete -c v2l -n '__v2l_in eval' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in eval' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in eval' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in eval' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in train' -a '(__v2l_manifests)'
complete -c v2l -n '__v2l_in train' -l output -s o -x -a '(__v2l_folders)' -d 'Where the run lives; gone on with'
complete -c v2l -n '__v2l_in train' -l validation -x -a '(__v2l_manifests)' -d 'To choose the best by; else every 100th clip'
complete -c v2l -n '__v2l_in train' -l root -x -a '(__v2l_folders)' -d 'Where video paths start; else at the manifest'
complete -c v2l -n '__v2l_in train' -l sizes -x -d 'Of a fresh hypernetwork (rank, latent_size, ...)'
complete -c v2l -n '__v2l_in train' -l teacher -d 'Learn the frozen model\'s own answers, not the manifest\'s'
complete -c v2l -n '__v2l_in train' -l kl-weight -x -d 'Of staying near the frozen model in context'
complete -c v2l -n '__v2l_in train' -l hidden-weight -x -d 'Of staying near its hidden states, too'
complete -c v2l -n '__v2l_in train' -l steer-weight -x -d 'Of each latent looking at the end of a frame'
complete -c v2l -n '__v2l_in train' -l steps -x -d 'Optimisation steps'
complete -c v2l -n '__v2l_in train' -l batch -x -d 'Clips in a step, all told'
complete -c v2l -n '__v2l_in train' -l together -x -d 'Clips in memory at a time; gradients add up'
complete -c v2l -n '__v2l_in train' -l learning-rate -x -d 'Its peak'
complete -c v2l -n '__v2l_in train' -l questions -x -d 'At most this many of a clip at a time'
complete -c v2l -n '__v2l_in train' -l segments -x -d 'Compose up to N adapters of a clip; 1 for never'
complete -c v2l -n '__v2l_in train' -l windows -x -d 'Read a clip in up to N joint windows; 1 for never'
complete -c v2l -n '__v2l_in train' -l denser -x -d 'Take up to X times the frames, from any offset'
complete -c v2l -n '__v2l_in train' -l frames -x -d 'At most this many frames; else as trained'
complete -c v2l -n '__v2l_in train' -l fps -x -d 'Frames per second of video to aim for; else as trained'
complete -c v2l -n '__v2l_in train' -l resolution -x -d 'Of a frame\'s longest edge; of several, half the clips the first'
complete -c v2l -n '__v2l_in train' -l no-mark-end -l mark-end -d 'Announce a video\'s last frame as such, so that segments know; else as --hypernetwork had it'
complete -c v2l -n '__v2l_in train' -l validate-every -x -d 'Steps between validations'
complete -c v2l -n '__v2l_in train' -l save-every -x -d 'Steps between states to go on from'
complete -c v2l -n '__v2l_in train' -l workers -x -d 'Processes that read clips ahead'
complete -c v2l -n '__v2l_in train' -l seed -x -d 'Of weights, order and cuts'
complete -c v2l -n '__v2l_in train' -l model -s m -x -a '(__v2l_models)' -d 'A preset or a model folder; else V2L_MODEL'
complete -c v2l -n '__v2l_in train' -l hypernetwork -x -a '(__v2l_weights)' -d 'Its hypernetwork, where the model\'s own is not meant'
complete -c v2l -n '__v2l_in train' -l device -x -a '(__v2l_devices)' -d 'cpu, cuda, cuda:1, mps; else the best there'
complete -c v2l -n '__v2l_in train' -l dtype -x -a '(__v2l_dtypes)' -d 'Else bfloat16 on CUDA, float32 elsewhere'
complete -c v2l -n '__v2l_in train' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in train' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in train' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in train' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in demo' -l output-dir -x -a '(__v2l_folders)' -d 'Where to; else here'
complete -c v2l -n '__v2l_in demo' -l overwrite -d 'Replace a lecture.mp4 that is there'
complete -c v2l -n '__v2l_in demo' -l device -x -a '(__v2l_devices)' -d 'cpu, cuda, cuda:1, mps; else the best there'
complete -c v2l -n '__v2l_in demo' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in demo' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in demo' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in demo' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in compose' -a '(__v2l_adapters)'
complete -c v2l -n '__v2l_in compose' -l output -s o -x -a '(__v2l_adapters)' -d 'The composed adapter'
complete -c v2l -n '__v2l_in compose' -l rank -x -d 'Reduce the generated ranks to this many, by SVD'
complete -c v2l -n '__v2l_in compose' -l overwrite -d 'Replace an adapter that is there'
complete -c v2l -n '__v2l_in compose' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in compose' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in compose' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in compose' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in info' -a '(__v2l_weights)'
complete -c v2l -n '__v2l_in info' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in info' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in info' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in info' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in pull' -a '(__v2l_architectures)'
complete -c v2l -n '__v2l_in pull' -l revision -x -d 'Of the model: a branch, tag or commit; else as recorded'
complete -c v2l -n '__v2l_in pull' -l default -d 'Let it stand in where no model is named; the first pulled does'
complete -c v2l -n '__v2l_in pull' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in pull' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in pull' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in pull' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in verify' -a '(__v2l_adapters)'
complete -c v2l -n '__v2l_in verify' -l model -s m -x -a '(__v2l_models)' -d 'A preset or a model folder; else V2L_MODEL'
complete -c v2l -n '__v2l_in verify' -l device -x -a '(__v2l_devices)' -d 'cpu, cuda, cuda:1, mps; else the best there'
complete -c v2l -n '__v2l_in verify' -l dtype -x -a '(__v2l_dtypes)' -d 'Else bfloat16 on CUDA, float32 elsewhere'
complete -c v2l -n '__v2l_in verify' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in verify' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in verify' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in verify' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in export' -a '(__v2l_adapters)'
complete -c v2l -n '__v2l_in export' -l format -x -a '(__v2l_formats)' -d 'For transformers and vLLM, or for llama.cpp'
complete -c v2l -n '__v2l_in export' -l output -s o -x -a '(__v2l_files)' -d 'A folder for peft, a .gguf for gguf'
complete -c v2l -n '__v2l_in export' -l overwrite -d 'Replace an export that is there'
complete -c v2l -n '__v2l_in export' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in export' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in export' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in export' -l help -s h -d 'Show this message and exit'

complete -c v2l -n '__v2l_in import' -a '(__v2l_checkpoints)'
complete -c v2l -n '__v2l_in import' -l output -s o -x -a '(__v2l_safetensors)' -d 'v2l\'s own file (.safetensors)'
complete -c v2l -n '__v2l_in import' -l overwrite -d 'Replace a file that is there'
complete -c v2l -n '__v2l_in import' -l json -d 'One JSON object a line'
complete -c v2l -n '__v2l_in import' -l quiet -d 'No notes, no progress'
complete -c v2l -n '__v2l_in import' -l debug -d 'Tracebacks of errors'
complete -c v2l -n '__v2l_in import' -l help -s h -d 'Show this message and exit'
