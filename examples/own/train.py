"""The weights of one's own: a few epochs of Adam, saved after the first and after the last.

python train.py     # about five seconds; writes early.safetensors and weights.safetensors beside it
"""

from pathlib import Path

import torch
from batches import make as batches
from net import make as net
from safetensors.torch import save_file

HERE = Path(__file__).parent
torch.manual_seed(1)
model, data, loss = net(), batches()["train"], torch.nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for epoch in range(150):
    for x, y in data:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
    if epoch in (0, 149):
        print(f"epoch {epoch + 1}: loss {value.item():.3f}")
        save_file(model.state_dict(), HERE / ("early.safetensors" if epoch == 0 else "weights.safetensors"))
