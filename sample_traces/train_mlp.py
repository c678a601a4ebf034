"""Trains a two-layer perceptron: small enough to check every number of its recording with pencil and paper."""

import torch
from torch import nn

torch.manual_seed(0)
device = "neuron" if torch.accelerator.is_available() else "cpu"
model = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 10)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
criterion = nn.CrossEntropyLoss()
centers = torch.randn(10, 512)

for step in range(5):
    target = torch.randint(0, 10, (128,))
    data = centers[target] + torch.randn(128, 512)
    data, target = data.to(device), target.to(device)
    optimizer.zero_grad()
    loss = criterion(model(data), target)
    loss.backward()
    optimizer.step()
    print(f"step {step} loss {loss.item():.4f}")
