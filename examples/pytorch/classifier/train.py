"""An image classifier with augmentation, mixed precision, a cosine schedule and an average of the weights."""

import argparse
import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import train_cloud


class Stripes(Dataset):
    """Images of 16 x 16 pixels with stripes in one of four directions; each time shifted and noisy in another way."""

    def __init__(self, count, size=16):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 4, (count,), generator=generator)
        self.widths = torch.rand(count, generator=generator) * 0.6 + 0.5
        self.rows, self.columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        label = self.labels[index]
        along = (self.rows, self.columns, self.rows + self.columns, self.rows - self.columns)[label]
        image = torch.sin(along * self.widths[index] + 6.28 * torch.rand(1))
        return image[None] + 0.5 * torch.randn(1, 16, 16), label


def forever(loader):
    while True:
        yield from loader


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(
        nn.Conv2d(1, args.width, 3), nn.BatchNorm2d(args.width), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1),
        nn.Conv2d(args.width, args.width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(args.width, 4),
    ).to(device)  # fmt: skip
    ema = copy.deepcopy(model)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=3e-3, total_steps=args.steps)
    scaler = torch.amp.GradScaler(device)
    loader = DataLoader(Stripes(args.images), args.batch_size, shuffle=True, drop_last=True)
    data = train_cloud.batches(loader)

    accuracy = 0.0
    with train_cloud.resumable(model=model, ema=ema, opt=opt, scheduler=scheduler, scaler=scaler, data=data) as run:
        for step in run.steps(args.steps):
            images, labels = (one.to(device) for one in next(data))
            with torch.autocast(device, dtype=torch.bfloat16):
                logits = model(images)
            loss = nn.functional.cross_entropy(logits.float(), labels)
            opt.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
            scheduler.step()
            with torch.no_grad():
                for mean, now in zip(ema.parameters(), model.parameters(), strict=True):
                    mean.lerp_(now, 0.02)
            accuracy = 0.95 * accuracy + 0.05 * (logits.argmax(1) == labels).float().mean().item()
            run.log(loss=loss, accuracy=accuracy)
            if step % 50 == 49:
                print(f"step {step + 1}: loss {loss.item():.3f}, accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
