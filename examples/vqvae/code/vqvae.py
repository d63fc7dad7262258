"""A small convolutional VQ-VAE (van den Oord et al. 2017): images of 64 x 64 pixels as 16 x 16 numbers of codes."""

import torch
from torch import nn
from torch.nn import functional


class VQVAE(nn.Module):
    """
    :param codes: how many there are
    :param width: channels
    :param size: of a code
    """

    def __init__(self, codes=64, width=32, size=16):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(width, size, 1),
        )  # fmt: skip
        self.codes = nn.Embedding(codes, size)
        nn.init.uniform_(self.codes.weight, -1 / codes, 1 / codes)
        self.decoder = nn.Sequential(
            nn.Conv2d(size, width, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, images):
        """
        :param images: ``[batch, 3, height, width]``, 0 to 1
        :return: reconstructions; the loss of the codes; how many codes the batch uses, as a perplexity
        """
        mse, codes = functional.mse_loss, self.codes.weight
        latents = self.encoder(images).movedim(1, -1)
        flat = latents.reshape(-1, latents.shape[-1])
        numbers = (flat.square().sum(1, keepdim=True) - 2 * flat @ codes.T + codes.square().sum(1)).argmin(1)
        quantized = self.codes(numbers).view_as(latents)
        loss = mse(quantized, latents.detach()) + 0.25 * mse(latents, quantized.detach())
        passed = latents + (quantized - latents).detach()
        share = torch.bincount(numbers, minlength=len(codes)).float() / len(numbers)
        perplexity = (-(share * (share + 1e-9).log()).sum()).exp()
        return self.decoder(passed.movedim(-1, 1)), loss, perplexity
