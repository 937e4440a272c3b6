#!/usr/bin/env bash
# What all training scripts share: sourced by them after they have set ROOT and their values, it fills in the rest, starts
# one process per device through DeepSpeed, and hands extra words of the command line on to training.main.
# Paths in the environment may be relative to the folder that the script is called from.

if [ -z "${PYTHON:-}" ]; then
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"; else PYTHON=python3; fi
fi

absolute() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac }
local_or_name() { if [ -e "$1" ]; then absolute "$1"; else echo "$1"; fi }  # a folder here, or a hub name

# Models
: "${VIS_PROJ:=baseline}"
: "${ATTENTION:=mmca}"
: "${LANG_LORA_DIM:=0}"
# Data
: "${DATASET_SAMPLES:=all}"
: "${DATASET_CONCAT:=1}"
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
: "${DRY_RUN:=0}"

GPUS="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
if [ "$GPUS" -eq 0 ]; then
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
    : "${NUM_GPUS:=1}"
    CORES="$(getconf _NPROCESSORS_ONLN)"
    # More threads than cores, over all processes, make every one of them wait for the others.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((CORES > NUM_GPUS ? CORES / NUM_GPUS : 1))}"
else
    : "${NUM_GPUS:=$GPUS}"
fi

if [ -z "${ACCUMULATION:-}" ]; then
    if [ $((GLOBAL_BATCH % (NUM_GPUS * BATCH))) -ne 0 ]; then
        echo "error: GLOBAL_BATCH=$GLOBAL_BATCH is no multiple of NUM_GPUS x BATCH = $NUM_GPUS x $BATCH: change one" >&2
        exit 2
    fi
    ACCUMULATION=$((GLOBAL_BATCH / (NUM_GPUS * BATCH)))
fi

DATA_PATH="$(absolute "$DATA_PATH")"
OUTPUT_DIR="$(absolute "$OUTPUT_DIR")"
LM_MODEL="$(local_or_name "$LM_MODEL")"
VISION_MODEL="$(local_or_name "$VISION_MODEL")"

# shellcheck disable=SC2086 # lists are split into words on purpose
set -- "$PYTHON" -m deepspeed.launcher.runner \
    --num_gpus "$NUM_GPUS" --master_port "${MASTER_PORT:-$((20000 + RANDOM % 20000))}" --module training.main \
    --lm_model_name_or_path "$LM_MODEL" --vision_model_name_or_path "$VISION_MODEL" \
    --vis_proj "$VIS_PROJ" --attention "$ATTENTION" --lang_lora_dim "$LANG_LORA_DIM" \
    --data_path "$DATA_PATH" --dataset_names $DATASETS --dataset_samples $DATASET_SAMPLES \
    --dataset_concatenate_samples $DATASET_CONCAT --data_train_split_ratio "$DATA_TRAIN_SPLIT" \
    --max_num_image_per_sample "$MAX_IMAGES" --max_seq_len "$MAX_SEQ_LEN" --dataloader_num_workers "$WORKERS" \
    --packing "$PACKING" --group_by_length "$GROUP_BY_LENGTH" \
    --num_train_epochs "$EPOCHS" --max_steps "$MAX_STEPS" --gradient_accumulation_steps "$ACCUMULATION" \
    --per_device_train_batch_size "$BATCH" --per_device_eval_batch_size "$EVAL_BATCH" \
    --learning_rate "$LR" --learning_rate_pretraining_components "$EMBEDDING_LR" \
    --weight_decay "$WEIGHT_DECAY" --num_warmup_steps "$WARMUP" --seed "$SEED" \
    --zero_stage "$ZERO_STAGE" --stage3_gather_layers "$STAGE3_GATHER_LAYERS" --precision "$PRECISION" --gradient_checkpointing "$GRADIENT_CHECKPOINTING" \
    --enable_tensorboard "$TENSORBOARD" --logging_steps "$LOGGING_STEPS" \
    --eval_strategy "$EVAL_STRATEGY" --eval_steps "$EVAL_STEPS" \
    --save_strategy "$SAVE_STRATEGY" --save_steps "$SAVE_STEPS" --save_total_limit "$SAVE_TOTAL_LIMIT" \
    --checkpoint_form "$CHECKPOINT_FORM" --output_dir "$OUTPUT_DIR" \
    "$@"

if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@"
    echo
    exit 0
fi
cd "$ROOT"
exec "$@"
