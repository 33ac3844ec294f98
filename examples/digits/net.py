"""A small convolutional network for images of 8 by 8 pixels."""

import torch.nn as nn


class DigitsCNN(nn.Module):
    def __init__(self, width=16, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(2 * width * 4, classes)

    def forward(self, image):
        """image: (batch, 1, 8, 8) float32, values 0..1; returns logits (batch, classes)."""
        x = self.pool(self.conv1(image).relu())
        x = self.pool(self.conv2(x).relu())
        return self.fc(x.flatten(1))


def build(width=16):
    return DigitsCNN(width)
