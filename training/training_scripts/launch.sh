#!/usr/bin/env bash
# What all training scripts share: sourced by them after they have set ROOT and their values, it fills in the rest, starts
# one process per device, and hands extra words of the command line on to training.main. Paths, in the environment and
# after the script's name, may be relative to the folder that it is called from. What each value is for: docs/scaling.md.

source "$ROOT/utils/run_module.sh"
PYTHON="$(python_of "$ROOT")"

absolute() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac }
local_or_name() { if [ -e "$1" ]; then absolute "$1"; else echo "$1"; fi }  # a folder here, or a hub name
own_data_or_name() {  # a published name stays one where a folder is called so, as in a folder of all data
    case "$1" in
        */* | *.*) local_or_name "$1" ;;
        *) if [ -e "$1/state.json" ] || [ -e "$1/dataset_dict.json" ] || compgen -G "$1/*.parquet" >/dev/null
           then absolute "$1"; else echo "$1"; fi ;;
    esac
}

# Models. ENCODER names one of three, VISION_MODEL any other.
: "${ENCODER:=clip}"
case "$ENCODER" in
    clip) : "${VISION_MODEL:=openai/clip-vit-large-patch14}" ;;
    bigg) : "${VISION_MODEL:=ViT-bigG-14/laion2b_s39b_b160k}" ;;  # of OpenCLIP
    qwen) : "${VISION_MODEL:=$ROOT/models/qwen_vl_vit}" ;;  # made by helper.extract_qwen_vl
    *) echo "error: ENCODER=$ENCODER: choose clip, bigg or qwen, or set VISION_MODEL to a folder or hub name" >&2; exit 2 ;;
esac
: "${VIS_PROJ:=baseline}"
: "${ATTENTION:=mmca}"
: "${LANG_LORA_DIM:=0}"
: "${VIS_LORA_DIM:=0}"
: "${INIT_FROM:=}"  # a checkpoint whose embedding, projection and adapters this run begins with
# Data
: "${DATASET_SAMPLES:=all}"
: "${DATASET_CONCAT:=1}"
: "${DATASET_WEIGHTS:=1}"
: "${IMAGE_FOLDER:=}"  # of data of your own; otherwise each file's own folder
: "${DATA_TRAIN_SPLIT:=0.9}"
: "${MAX_IMAGES:=8}"
: "${MAX_SEQ_LEN:=4096}"
: "${PACKING:=false}"  # true: whole conversations side by side in rows of MAX_SEQ_LEN; BATCH then counts rows
: "${GROUP_BY_LENGTH:=false}"
: "${WORKERS:=4}"
# Optimisation
: "${EPOCHS:=6}"
: "${MAX_STEPS:=-1}"
: "${GLOBAL_BATCH:=128}"
: "${BATCH:=2}"
: "${EVAL_BATCH:=$BATCH}"
: "${LR:=1e-3}"
: "${EMBEDDING_LR:=0}"
: "${WEIGHT_DECAY:=0}"
: "${WARMUP:=0.1}"
: "${SEED:=1234}"
# Running
: "${ZERO_STAGE:=3}"
: "${STAGE3_GATHER_LAYERS:=false}"
: "${PRECISION:=auto}"
: "${GRADIENT_CHECKPOINTING:=true}"
: "${TENSORBOARD:=true}"
: "${LOGGING_STEPS:=10}"
: "${EVAL_STRATEGY:=epoch}"
: "${EVAL_STEPS:=500}"
: "${SAVE_STRATEGY:=epoch}"
: "${SAVE_STEPS:=500}"
: "${SAVE_TOTAL_LIMIT:=2}"
: "${CHECKPOINT_FORM:=full}"
: "${EPOCH_CHECKPOINT_FORM:=trained}"
: "${STALL_TIMEOUT:=900}"  # seconds without any movement after which the run ends; 0: never
: "${DRY_RUN:=0}"
: "${GPU_MEMORY:=}"  # GB of one GPU, for the plan of DRY_RUN; otherwise that of the GPU here, or 80
# Sharding
: "${SHARD_WITHIN:=all}"  # node or none: where frozen weights are split under ZeRO-3
: "${OFFLOAD_OPTIMIZER:=none}"  # or cpu
: "${OFFLOAD_PARAM:=none}"  # or cpu, nvme
: "${NVME_PATH:=}"
: "${DEEPSPEED_CONFIG:=}"  # a JSON file of your own in the place of ZERO_STAGE and what follows from it
# Starting: deepspeed, torchrun or accelerate, on NNODES machines of NUM_GPUS devices each
: "${LAUNCHER:=deepspeed}"
: "${HOSTFILE:=}"  # for deepspeed: a line "host slots=8" for each node, reached by ssh from this one
: "${NNODES:=1}"
: "${NODE_RANK:=}"  # for torchrun and accelerate, and for deepspeed without ssh: this script runs on every node
: "${MASTER_ADDR:=}"

if [ "${DS_ACCELERATOR:-}" = cpu ]; then
    GPUS=0
else
    GPUS="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
fi
if [ "$GPUS" -eq 0 ]; then
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
    : "${NUM_GPUS:=1}"
    CORES="$(getconf _NPROCESSORS_ONLN)"
    # More threads than cores, over all processes, make every one of them wait for the others.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((CORES > NUM_GPUS ? CORES / NUM_GPUS : 1))}"
else
    : "${NUM_GPUS:=$GPUS}"
fi

if [ -n "$HOSTFILE" ]; then
    HOSTFILE="$(absolute "$HOSTFILE")"
    [ -f "$HOSTFILE" ] || { echo "error: HOSTFILE=$HOSTFILE: no such file; each of its lines is: host slots=8" >&2; exit 2; }
    PROCESSES="$(sed 's/#.*//' "$HOSTFILE" | sed -n 's/.*slots=\([0-9][0-9]*\).*/\1/p' | awk '{ n += $1 } END { print n + 0 }')"
    NNODES="$(sed 's/#.*//' "$HOSTFILE" | grep -c 'slots=' || true)"
    [ "$PROCESSES" -gt 0 ] || { echo "error: $HOSTFILE names no host; each of its lines is: host slots=8" >&2; exit 2; }
else
    PROCESSES=$((NNODES * NUM_GPUS))
fi
if [ "$NNODES" -gt 1 ] && [ -z "$MASTER_ADDR" ]; then
    if [ -n "$NODE_RANK" ] || [ "$LAUNCHER" != deepspeed ]; then
        echo "error: NNODES=$NNODES: set MASTER_ADDR to the first node, and NODE_RANK (from 0) on each" >&2
        exit 2
    elif [ -z "$HOSTFILE" ]; then
        echo "error: NNODES=$NNODES: set HOSTFILE, or MASTER_ADDR and NODE_RANK on each node" >&2
        exit 2
    fi
fi
if [ -z "${MASTER_PORT:-}" ]; then  # nodes have to agree on one; on a single machine any free one will do
    if [ "$NNODES" -gt 1 ]; then MASTER_PORT=29500; else MASTER_PORT=$((20000 + RANDOM % 12000)); fi
fi

if [ -z "${ACCUMULATION:-}" ]; then
    if [ $((GLOBAL_BATCH % (PROCESSES * BATCH))) -ne 0 ]; then
        echo "error: GLOBAL_BATCH=$GLOBAL_BATCH is no multiple of processes x BATCH = $PROCESSES x $BATCH: change one" >&2
        exit 2
    fi
    ACCUMULATION=$((GLOBAL_BATCH / (PROCESSES * BATCH)))
fi

DATA_PATH="$(absolute "$DATA_PATH")"
OUTPUT_DIR="$(absolute "$OUTPUT_DIR")"
DATASET_WORDS=()
# shellcheck disable=SC2206 # a list of words
WORDS=($DATASETS)
while [ "${#WORDS[@]}" -gt 0 ]; do  # as many words as are the name of a file or folder together, which may hold spaces
    COUNT="${#WORDS[@]}"
    until [ "$COUNT" -eq 1 ] || [ -e "${WORDS[*]:0:COUNT}" ] || [ -e "$DATA_PATH/${WORDS[*]:0:COUNT}" ]; do
        COUNT=$((COUNT - 1))
    done
    DATASET_WORDS+=("$(own_data_or_name "${WORDS[*]:0:COUNT}")")
    WORDS=("${WORDS[@]:COUNT}")
done
LM_MODEL="$(local_or_name "$LM_MODEL")"
VISION_MODEL="$(local_or_name "$VISION_MODEL")"
if [ "$ENCODER" = qwen ] && [ "$VISION_MODEL" = "$ROOT/models/qwen_vl_vit" ] && [ ! -e "$VISION_MODEL" ]; then
    if [ "$DRY_RUN" = 1 ]; then
        VISION_MODEL=qwen-vl-vit  # its shapes are known without the weights
    else
        echo "error: $VISION_MODEL is not there: python -m helper.extract_qwen_vl makes it of Qwen/Qwen-VL-Chat" >&2
        exit 2
    fi
fi

# shellcheck disable=SC2086 # lists are split into words on purpose
set -- \
    --lm_model_name_or_path "$LM_MODEL" --vision_model_name_or_path "$VISION_MODEL" \
    --vis_proj "$VIS_PROJ" --attention "$ATTENTION" --lang_lora_dim "$LANG_LORA_DIM" --vis_lora_dim "$VIS_LORA_DIM" \
    --data_path "$DATA_PATH" --dataset_names "${DATASET_WORDS[@]}" --dataset_samples $DATASET_SAMPLES \
    --dataset_concatenate_samples $DATASET_CONCAT --dataset_weights $DATASET_WEIGHTS \
    --data_train_split_ratio "$DATA_TRAIN_SPLIT" \
    --max_num_image_per_sample "$MAX_IMAGES" --max_seq_len "$MAX_SEQ_LEN" --dataloader_num_workers "$WORKERS" \
    --packing "$PACKING" --group_by_length "$GROUP_BY_LENGTH" \
    --num_train_epochs "$EPOCHS" --max_steps "$MAX_STEPS" --gradient_accumulation_steps "$ACCUMULATION" \
    --per_device_train_batch_size "$BATCH" --per_device_eval_batch_size "$EVAL_BATCH" \
    --learning_rate "$LR" --learning_rate_pretraining_components "$EMBEDDING_LR" \
    --weight_decay "$WEIGHT_DECAY" --num_warmup_steps "$WARMUP" --seed "$SEED" \
    --precision "$PRECISION" --gradient_checkpointing "$GRADIENT_CHECKPOINTING" \
    --enable_tensorboard "$TENSORBOARD" --logging_steps "$LOGGING_STEPS" \
    --eval_strategy "$EVAL_STRATEGY" --eval_steps "$EVAL_STEPS" \
    --save_strategy "$SAVE_STRATEGY" --save_steps "$SAVE_STEPS" --save_total_limit "$SAVE_TOTAL_LIMIT" \
    --checkpoint_form "$CHECKPOINT_FORM" --epoch_checkpoint_form "$EPOCH_CHECKPOINT_FORM" \
    --stall_timeout "$STALL_TIMEOUT" --output_dir "$OUTPUT_DIR" \
    "$@"

[ "$SHARD_WITHIN" = all ] || set -- --shard_within "$SHARD_WITHIN" "$@"
[ -z "$INIT_FROM" ] || set -- --init_from "$(local_or_name "$INIT_FROM")" "$@"
[ -z "$IMAGE_FOLDER" ] || set -- --image_folder "$(local_or_name "$IMAGE_FOLDER")" "$@"
if [ -n "$DEEPSPEED_CONFIG" ]; then
    set -- --deepspeed_config "$(absolute "$DEEPSPEED_CONFIG")" "$@"
else
    set -- --zero_stage "$ZERO_STAGE" --stage3_gather_layers "$STAGE3_GATHER_LAYERS" "$@"
    [ "$OFFLOAD_OPTIMIZER" = none ] || set -- --offload_optimizer "$OFFLOAD_OPTIMIZER" "$@"
    [ "$OFFLOAD_PARAM" = none ] || set -- --offload_param "$OFFLOAD_PARAM" "$@"
    [ -z "$NVME_PATH" ] || set -- --nvme_path "$(absolute "$NVME_PATH")" "$@"
fi

case "$LAUNCHER" in
    deepspeed)
        START=("$PYTHON" -m deepspeed.launcher.runner --quiet --master_port "$MASTER_PORT")
        if [ -n "$HOSTFILE" ]; then START+=(--hostfile "$HOSTFILE"); else START+=(--num_gpus "$NUM_GPUS"); fi
        [ -z "$MASTER_ADDR" ] || START+=(--master_addr "$MASTER_ADDR")
        if [ -n "$NODE_RANK" ]; then
            [ -n "$HOSTFILE" ] || { echo "error: LAUNCHER=deepspeed with NODE_RANK needs HOSTFILE" >&2; exit 2; }
            START+=(--no_ssh --node_rank "$NODE_RANK")
        fi
        START+=(--module training.main) ;;
    torchrun)
        START=("$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --nproc_per_node "$NUM_GPUS" --max_restarts 0
            --node_rank "${NODE_RANK:-0}" --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "$MASTER_PORT"
            -m training.main) ;;
    accelerate)
        if [ "$GPUS" -eq 0 ] && [ "$PROCESSES" -gt 1 ]; then
            echo "error: accelerate launch starts several processes on GPUs only: set NUM_GPUS=1, or LAUNCHER=torchrun" >&2
            exit 2
        fi
        START=("$PYTHON" -m accelerate.commands.launch --num_machines "$NNODES" --num_processes "$PROCESSES"
            --machine_rank "${NODE_RANK:-0}" --main_process_ip "${MASTER_ADDR:-127.0.0.1}"
            --main_process_port "$MASTER_PORT" --mixed_precision no --dynamo_backend no)
        if [ "$PROCESSES" -gt 1 ]; then START+=(--multi_gpu); fi
        # Never --cpu: with it accelerate passes DeepSpeed over, and ZeRO-3's weights would not be gathered.
        START+=(--module training.main) ;;
    *) echo "error: LAUNCHER=$LAUNCHER: choose deepspeed, torchrun or accelerate" >&2; exit 2 ;;
esac

if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "${START[@]}" "$@"
    echo
    modules_from "$ROOT"
    exec "$PYTHON" -m helper.dry_run --gpus "$PROCESSES" --gpus_per_node "$((PROCESSES / NNODES))" ${GPU_MEMORY:+--gpu_memory "$GPU_MEMORY"} "$@"
fi
modules_from "$ROOT"
[ -z "$HOSTFILE" ] || cd "$ROOT"  # DeepSpeed starts the other nodes' processes in the same folder, which they have
trap '' USR1  # a scheduler's warning reaches every process: launchers would die of it, training.main saves and ends
# The outermost process of DeepSpeed would end at Ctrl-C at once, with a traceback, while the others still save.
[ "$LAUNCHER" != deepspeed ] || trap '' INT
exec "${START[@]}" "$@"
