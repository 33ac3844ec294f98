#!/bin/sh
# The whole way of a U-Net, from its data to a smaller file, in this folder:
#
#   sh walk.sh
#
# PYTHON and INGOT are the commands; TRAIN, TEST, EPOCHS and EVALUATIONS make it shorter.
set -eu
cd "$(dirname "$0")"
ingot() { ${INGOT:-ingot} "$@"; }
# A search that misses delta ends with 3, and leaves its best effort.
search() { ingot "$@" --max-evaluations "${EVALUATIONS:-6}" || [ $? -eq 3 ]; }

${PYTHON:-python} draw.py data "${TRAIN:-1000}" "${TEST:-200}"
ingot train segmentation.yaml -o run --epochs "${EPOCHS:-8}"
ingot evaluate segmentation.yaml
ingot infer segmentation.yaml --display pictures
ingot package segmentation.yaml -o segmentation.ingot
ingot export segmentation.yaml --format onnx -o exported
search compress segmentation.yaml -o compressed
search quantize segmentation.yaml -o quantized

# The packages answer as the network does; the spec says how an image is prepared.
for package in segmentation.ingot compressed/opt_model.ingot quantized/opt_model.ingot; do
    ingot verify "$package" --trust-code
    ingot infer "$package" --trust-code --spec segmentation.yaml --files data/test/0000.png
done
