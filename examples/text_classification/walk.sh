#!/bin/sh
# The whole way of the Transformer, from its data to a smaller file, in this folder:
#
#   sh walk.sh
#
# PYTHON and INGOT are the commands; TRAIN, TEST, EPOCHS and DELTA make it shorter.
set -eu
cd "$(dirname "$0")"
ingot() { ${INGOT:-command ingot} "$@"; }

${PYTHON:-python} make_data.py --train "${TRAIN:-4000}" --test "${TEST:-1000}"
ingot train transformer.yaml -o run --epochs "${EPOCHS:-8}"
ingot evaluate transformer.yaml
ingot infer transformer.yaml --files samples.txt --display shown
ingot package transformer.yaml -o reviews.ingot
ingot export transformer.yaml --format onnx -o exported
ingot compress transformer.yaml --delta "${DELTA:-1}" --max-evaluations 6 -o compressed
ingot quantize transformer.yaml --delta "${DELTA:-1}" -o quantized

# The packages answer as the network does; the spec says how a text becomes tokens.
for package in reviews.ingot compressed/opt_model.ingot quantized/opt_model.ingot; do
    ingot infer "$package" --trust-code --spec transformer.yaml --files samples.txt
done
