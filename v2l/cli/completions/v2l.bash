# Completion of v2l's command line in bash, 4 or later. Written by completions/generate.py; change that file instead.

# Candidates are added to COMPREPLY line by line, so that spaces and wildcards in names stay what they are.
_v2l_words() {
    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "$2" -- "$1")
}

# Folders, and files whose names match the pattern.
_v2l_paths() {
    compopt -o filenames
    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(_v2l_list "$1" "$2")
}

# compgen undoes the quotes of what was typed; the subshell keeps the shell's own options as they were.
_v2l_list() (
    shopt -s extglob nocasematch
    compgen -d -- "$1"
    while IFS= read -r name; do
        [[ $name == $2 ]] && printf '%s\n' "$name"
    done < <(compgen -f -- "$1")
)

_v2l_offer() {
    case $1 in
        ablations) _v2l_words "$2" 'ranks layers times' ;;
        adapters) _v2l_paths "$2" '*@(.v2l.safetensors)' ;;
        architectures) _v2l_words "$2" 'smolvlm2-500m smolvlm2-2.2b' ;;
        benchmarks) _v2l_words "$2" 'activitynet-captions plm-rdcap plm-rcap vdc carebench nextqa activitynet-qa plm-sgqa vidcapbench' ;;
        checkpoints) _v2l_paths "$2" '*@(.pt)' ;;
        devices) _v2l_words "$2" 'cpu cuda mps' ;;
        dtypes) _v2l_words "$2" 'float32 bfloat16 float16' ;;
        files) _v2l_paths "$2" '*' ;;
        formats) _v2l_words "$2" 'peft gguf' ;;
        folders) _v2l_paths "$2" '' ;;
        images) _v2l_paths "$2" '*@(.pdf|.png|.svg)' ;;
        commands) _v2l_words "$2" 'encode ask find frames demo compose info verify export pull import bench eval train completion help' ;;
        controls) _v2l_words "$2" 'in_context nothing bias other_clip' ;;
        manifests) _v2l_paths "$2" '*@(.jsonl)' ;;
        metrics) _v2l_words "$2" 'exact f1 rouge_l judge' ;;
        models) _v2l_words "$2" 'tiny smolvlm2-500m smolvlm2-2.2b'; _v2l_paths "$2" '' ;;
        papers) _v2l_words "$2" '500m 2.2b' ;;
        safetensors) _v2l_paths "$2" '*@(.safetensors)' ;;
        shells) _v2l_words "$2" 'bash zsh fish' ;;
        tables) _v2l_paths "$2" '*@(.csv)' ;;
        subjects) _v2l_paths "$2" '*@(.v2l.safetensors|.3gp|.avi|.flv|.m2ts|.m4v|.mkv|.mov|.mp4|.mpeg|.mpg|.mts|.ogv|.ts|.webm|.wmv)' ;;
        videos) _v2l_paths "$2" '*@(.3gp|.avi|.flv|.m2ts|.m4v|.mkv|.mov|.mp4|.mpeg|.mpg|.mts|.ogv|.ts|.webm|.wmv)' ;;
        weights) _v2l_paths "$2" '*@(.pt|.safetensors)' ;;
    esac
}

# Sets `kind` to what follows an option of a command; fails where nothing does.
_v2l_option() {
    case $1 in
        'eval --ablate') kind='ablations' ;;
        'encode --output' | 'encode -o' | 'compose --output' | 'compose -o') kind='adapters' ;;
        'bench --arch') kind='architectures' ;;
        'eval --benchmark') kind='benchmarks' ;;
        'encode --device' | 'ask --device' | 'find --device' | 'demo --device' | 'verify --device' | 'bench --device' | 'eval --device' | 'train --device') kind='devices' ;;
        'encode --dtype' | 'ask --dtype' | 'find --dtype' | 'demo --dtype' | 'verify --dtype' | 'pull --dtype' | 'bench --dtype' | 'eval --dtype' | 'train --dtype') kind='dtypes' ;;
        'encode --files-from' | 'export --output' | 'export -o') kind='files' ;;
        'ask --format' | 'export --format') kind='formats' ;;
        'encode --output-dir' | 'frames --output-dir' | 'frames -o' | 'demo --output-dir' | 'eval --root' | 'train --output' | 'train -o' | 'train --root') kind='folders' ;;
        'frames --strip' | 'bench --plot' | 'eval --plot') kind='images' ;;
        'eval --without') kind='controls' ;;
        'bench --output' | 'bench -o' | 'eval --output' | 'eval -o' | 'train --validation') kind='manifests' ;;
        'eval --metric') kind='metrics' ;;
        'encode --model' | 'encode -m' | 'ask --model' | 'ask -m' | 'find --model' | 'find -m' | 'demo --model' | 'demo -m' | 'verify --model' | 'verify -m' | 'bench --model' | 'bench -m' | 'eval --model' | 'eval -m' | 'train --model' | 'train -m') kind='models' ;;
        'eval --paper') kind='papers' ;;
        'import --output' | 'import -o') kind='safetensors' ;;
        'bench --csv') kind='tables' ;;
        'ask --in-context' | 'frames --video' | 'verify --video') kind='videos' ;;
        'encode --hypernetwork' | 'ask --hypernetwork' | 'demo --hypernetwork' | 'verify --hypernetwork' | 'bench --hypernetwork' | 'eval --hypernetwork' | 'train --hypernetwork') kind='weights' ;;
        'encode --frames' | 'encode --fps' | 'encode --start' | 'encode --end' | 'encode --resolution' | 'encode --shard' | 'encode --segments' | 'encode --segment-seconds' | 'ask --question' | 'ask -q' | 'ask --frames' | 'ask --fps' | 'ask --start' | 'ask --end' | 'ask --resolution' | 'ask --max-new-tokens' | 'ask --strength' | 'find --limit' | 'find -n' | 'find --question' | 'find --answer' | 'frames --at' | 'frames --segment' | 'compose --rank' | 'export --at' | 'export --segment' | 'pull --revision' | 'bench --frames' | 'bench --resolution' | 'bench --segments' | 'bench --questions' | 'bench --repeats' | 'bench --new-tokens' | 'bench --budget' | 'eval --frames' | 'eval --resolution' | 'eval --segments' | 'eval --segment-seconds' | 'eval --max-new-tokens' | 'eval --judge' | 'eval --judge-model' | 'eval --set' | 'train --frames' | 'train --fps' | 'train --resolution' | 'train --steps' | 'train --batch' | 'train --learning-rate' | 'train --seed' | 'train --set') kind='' ;;
        *) return 1 ;;
    esac
}

_v2l() {
    local IFS=$' \t\n' current=$2 command='' kind='' takes_value='' only_words='' options='' words='' word
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $takes_value ]]; then
            [[ $word == = ]] || takes_value='' # bash makes three words of --model=tiny
        elif [[ $only_words || $word != -?* ]]; then
            command=${command:-$word}
        elif [[ $word == -- ]]; then
            only_words=yes
        elif _v2l_option "$command $word"; then
            takes_value=yes
        fi
    done
    if [[ $takes_value ]]; then
        [[ $current == = ]] && current=''
        _v2l_offer "$kind" "$current"
        return
    fi
    case $command in
        '') words='' options='--version -V --json --help -h' ;;
        'encode') words='videos' options='--recursive -r --files-from --frames --fps --start --end --resolution --keep-damaged --shard --segments --segment-seconds --split --no-index --output -o --output-dir --cache --check-hash --overwrite --fail-fast --dry-run --model -m --hypernetwork --device --dtype --json --quiet --verbose --debug -v --help -h' ;;
        'ask') words='subjects' options='--recursive -r --question -q --in-context --frames --fps --start --end --resolution --max-new-tokens --strength --whole --each --format --raw --model -m --hypernetwork --device --dtype --json --quiet --verbose --debug -v --help -h' ;;
        'find') words='adapters' options='--recursive -r --limit -n --question --answer --model -m --device --dtype --json --quiet --verbose --debug -v --help -h' ;;
        'frames') words='adapters' options='--at --segment --video --output-dir -o --strip --overwrite --json --quiet --verbose --debug -v --help -h' ;;
        'demo') words='videos' options='--output-dir --overwrite --model -m --hypernetwork --device --dtype --json --quiet --verbose --debug -v --help -h' ;;
        'compose') words='adapters' options='--output -o --rank --overwrite --json --quiet --verbose --debug -v --help -h' ;;
        'info') words='weights' options='--timeline --json --quiet --verbose --debug -v --help -h' ;;
        'verify') words='adapters' options='--video --model -m --hypernetwork --device --dtype --json --quiet --verbose --debug -v --help -h' ;;
        'export') words='adapters' options='--format --output -o --at --segment --overwrite --json --quiet --verbose --debug -v --help -h' ;;
        'pull') words='architectures' options='--revision --dtype --default --yes -y --no-proof --json --quiet --verbose --debug -v --help -h' ;;
        'import') words='checkpoints' options='--output -o --overwrite --json --quiet --verbose --debug -v --help -h' ;;
        'bench') words='videos' options='--frames --resolution --segments --questions --repeats --new-tokens --budget --output -o --csv --plot --arch --random-weights --model -m --hypernetwork --device --dtype --json --quiet --verbose --debug -v --help -h' ;;
        'eval') words='manifests' options='--benchmark --root --frames --resolution --segments --timeline --segment-seconds --output -o --plot --without --ablate --max-new-tokens --metric --paper --judge --judge-model --set --model -m --hypernetwork --device --dtype --json --quiet --verbose --debug -v --help -h' ;;
        'train') words='manifests' options='--output -o --validation --root --frames --fps --resolution --teacher --steps --batch --learning-rate --seed --set --model -m --hypernetwork --device --dtype --json --quiet --verbose --debug -v --help -h' ;;
        'completion') words='shells' options='--help -h' ;;
        'help') words='commands' options='--help -h' ;;
    esac
    if [[ $current == -* && ! $only_words ]]; then
        _v2l_words "$current" "$options"
    elif [[ $command ]]; then
        _v2l_offer "$words" "$current"
    else
        _v2l_words "$current" 'encode ask find frames demo compose info verify export pull import bench eval train completion help'
    fi
}

complete -F _v2l v2l
