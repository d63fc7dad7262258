"""A small language model on a stream of tokens, with gradients added up over several batches and early stopping."""

import argparse
import math

import torch
from torch import nn


class Model(nn.Module):
    """A transformer with tied embeddings."""

    def __init__(self, tokens, width, length):
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, tokens, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens):
        hidden = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        size = tokens.shape[1]
        return self.out(self.blocks(hidden, mask=self.mask[:size, :size], is_causal=True))


def text(count):
    """Numbers spelled one after the other: '… 41 42 43 …'."""
    return torch.tensor(list(" ".join(map(str, range(count))).encode()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--numbers", type=int, default=20000)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--patience", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokens = text(args.numbers)
    model = Model(128, args.width, args.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    factor = lambda done: min(1.0, (done + 1) / 50) / math.sqrt(1 + done / 200)  # noqa: E731
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    position, best, without_progress, mean = 0, float("inf"), 0, 5.0

    for step in range(args.steps):
        chunk = args.batch_size * args.length
        if position + chunk + 1 > len(tokens):
            position = 0
        batch = tokens[position : position + chunk + 1]
        position += chunk
        inputs, targets = batch[:-1].view(args.batch_size, -1), batch[1:].reshape(args.batch_size, -1)
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        (loss / args.accumulate).backward()
        if step % args.accumulate == args.accumulate - 1:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            warm_up.step()
        mean = 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {mean:.3f}")
            best, without_progress = (mean, 0) if mean < best - 1e-3 else (best, without_progress + 1)
            if without_progress == args.patience:
                break


if __name__ == "__main__":
    main()
