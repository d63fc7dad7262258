"""Trains the VQ-VAE on frames: resumable at any step, with reconstructions as pictures and scalars of each epoch."""

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_frames import make_frames
from PIL import Image
from torch.nn import functional
from vqvae import VQVAE

import train_cloud

SHOWN = 8


def flipped(image, generator):
    """One of the game's mirror images, which are levels of the same game."""
    return image[:, :, ::-1] if generator.random() < 0.5 else image


def show(model, images, path):
    """Images above their reconstructions, as one picture."""
    with torch.no_grad():
        made = model(images[:SHOWN])[0]
    rows = [torch.cat(list(row), dim=2) for row in (images[:SHOWN], made)]
    pixels = (torch.cat(rows, dim=1).permute(1, 2, 0) * 255).byte().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    Image.fromarray(pixels).save(unfinished, "png")
    unfinished.replace(path)


def validate(model, frames, device):
    """The mean error over all of ``frames``, and the first batch."""
    first, total, count = None, 0.0, 0
    with torch.no_grad():
        for batch in frames.rest_of_epoch():
            images = batch.to(device).float() / 255
            first = images if first is None else first
            total += functional.mse_loss(model(images)[0], images).item() * len(images)
            count += len(images)
    return total / count, first


def main():
    settings, seed = train_cloud.run_file().parameters, train_cloud.run_file().seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    url = settings["frames"] or make_frames(Path(tempfile.gettempdir(), "train-cloud-vqvae-frames"))

    def frames(split, **more):
        return train_cloud.frames(
            str(url), settings["batch_size"], seed, include="*.png", split=split, split_by="folder",
            cache_bytes=settings["cache_bytes"], local=settings["local_frames"], **more,
        )  # fmt: skip

    data = frames((0, 0.8), augment=flipped)
    validation = frames((0.8, 1), shuffle=False, workers=0)
    model = VQVAE(settings["codes"]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])

    with train_cloud.resumable(model=model, optimizer=optimizer, data=data, validation=validation) as run:
        for step in run.steps():
            images = next(data).to(device).float() / 255
            made, loss_of_codes, perplexity = model(images)
            reconstruction = functional.mse_loss(made, images)
            loss = reconstruction + loss_of_codes
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss, reconstruction=reconstruction, perplexity=perplexity)
            if data.position == 0:  # an epoch has ended
                with torch.no_grad():
                    tried = [batch.to(device).float() / 255 for batch in validation.rest_of_epoch()]
                    errors = [
                        functional.mse_loss(model(batch)[0], batch, reduction="none").mean((1, 2, 3)) for batch in tried
                    ]
                run.log({"val/loss": torch.cat(errors).mean(), "epoch": data.epoch})
                show(model, tried[0], train_cloud.artifact_folder() / "pictures" / f"epoch_{data.epoch:04d}.png")
                print(f"epoch {data.epoch}, step {step + 1}: validation {torch.cat(errors).mean().item():.5f}")


if __name__ == "__main__":
    main()
