"""A generative adversarial network: two networks, two optimisers, points on a ring of eight."""

import argparse
import math

import torch
from torch import nn


def real(count):
    angles = torch.randint(0, 8, (count,)) * (math.pi / 4)
    return torch.stack([angles.cos(), angles.sin()], 1) + 0.05 * torch.randn(count, 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--critic-steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = nn.Sequential(nn.Linear(8, args.width), nn.ReLU(), nn.Linear(args.width, 2))
    critic = nn.Sequential(nn.Linear(2, args.width), nn.LeakyReLU(0.2), nn.Linear(args.width, 1))
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    bce = nn.functional.binary_cross_entropy_with_logits
    history = []

    for step in range(args.steps):
        for _ in range(args.critic_steps):
            fake = generator(torch.randn(args.batch_size, 8)).detach()
            told, untold = critic(real(args.batch_size)), critic(fake)
            critic_loss = bce(told, torch.ones_like(told)) + bce(untold, torch.zeros_like(untold))
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()
        judged = critic(generator(torch.randn(args.batch_size, 8)))
        generator_loss = bce(judged, torch.ones_like(judged))
        generator_optimizer.zero_grad()
        generator_loss.backward()
        generator_optimizer.step()
        history.append(critic_loss.item())
        if len(history) > 100 and sum(history[-100:]) < 20.0:  # the critic has won: let the generator catch up
            for group in generator_optimizer.param_groups:
                group["lr"] *= 1.1
            history.clear()
        if step % 200 == 199:
            print(f"step {step + 1}: critic {critic_loss.item():.3f}, generator {generator_loss.item():.3f}")


if __name__ == "__main__":
    main()
