#!/bin/sh
# The whole way of the Transformer, from its data to a smaller file, in this folder:
#
#   sh walk.sh
#
# PYTHON and INGOT are the commands; TRAIN, TEST, EPOCHS and DELTA make it shorter.
set -eu
cd "$(dirname "$0")"
ingot() { ${INGOT:-command ingot} "$@"; }
# The weights of the run, and the vocabulary that they belong to.
trained() {
    command=$1
    shift
    ingot "$command" transformer.yaml --set model.weights=run/weights.safetensors \
        --set data.kwargs.vocabulary=run/vocabulary.json "$@"
}

${PYTHON:-python} make_data.py --train "${TRAIN:-4000}" --test "${TEST:-1000}"
ingot train transformer.yaml -o run --epochs "${EPOCHS:-8}"
trained evaluate
trained infer --files samples.txt --display shown
trained package -o reviews.ingot
trained export --format onnx -o exported
trained compress --delta "${DELTA:-1}" --max-evaluations 6 -o compressed
trained quantize --delta "${DELTA:-1}" -o quantized

# The packages answer as the network does; the spec says how a text becomes tokens.
for package in reviews.ingot compressed/opt_model.ingot quantized/opt_model.ingot; do
    ingot infer "$package" --trust-code --spec transformer.yaml \
        --set data.kwargs.vocabulary=run/vocabulary.json --files samples.txt
done
