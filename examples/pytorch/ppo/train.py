"""Proximal policy optimisation in one file, with the environments, the rollout and the updates in one function."""

import argparse
import random

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import train_cloud


def layer(inputs, outputs, gain=1.414):
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


class Agent(nn.Module):
    def __init__(self, envs, width):
        super().__init__()
        size = int(np.prod(envs.single_observation_space.shape))
        self.critic = nn.Sequential(layer(size, width), nn.Tanh(), layer(width, 1, 1.0))
        self.actor = nn.Sequential(layer(size, width), nn.Tanh(), layer(width, envs.single_action_space.n, 0.01))

    def act(self, observation, action=None):
        choice = Categorical(logits=self.actor(observation))
        action = choice.sample() if action is None else action
        return action, choice.log_prob(action), choice.entropy(), self.critic(observation).squeeze(-1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    made = [lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(args.env_id)) for _ in range(args.num_envs)]
    envs = gym.vector.SyncVectorEnv(made)
    agent = Agent(envs, args.width)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
    shape = (args.num_steps, args.num_envs)
    observations = torch.zeros((*shape, *envs.single_observation_space.shape))
    actions, log_probs, rewards, ends, values = (torch.zeros(shape) for _ in range(5))

    global_step, returns = 0, []
    next_observation = torch.Tensor(envs.reset(seed=args.seed)[0])
    next_end = torch.zeros(args.num_envs)
    with train_cloud.resumable(model=agent, optimizer=optimizer) as run:
        for iteration in run.steps(args.iterations):
            optimizer.param_groups[0]["lr"] = (1.0 - iteration / args.iterations) * 2.5e-4
            for step in range(args.num_steps):
                global_step += args.num_envs
                observations[step], ends[step] = next_observation, next_end
                with torch.no_grad():
                    action, log_probs[step], _, values[step] = agent.act(next_observation)
                actions[step] = action
                found, reward, terminated, truncated, infos = envs.step(action.numpy())
                rewards[step] = torch.as_tensor(reward)
                next_observation = torch.Tensor(found)
                next_end = torch.Tensor(np.logical_or(terminated, truncated))
                if "episode" in infos:
                    returns = [*returns, *infos["episode"]["r"][infos["_episode"]].tolist()][-20:]

            with torch.no_grad():
                next_value = agent.critic(next_observation).squeeze(-1)
                advantages, last = torch.zeros_like(rewards), torch.zeros(args.num_envs)
                for t in reversed(range(args.num_steps)):
                    after, end = (next_value, next_end) if t == args.num_steps - 1 else (values[t + 1], ends[t + 1])
                    delta = rewards[t] + 0.99 * after * (1.0 - end) - values[t]
                    advantages[t] = last = delta + 0.99 * 0.95 * (1.0 - end) * last
                targets = advantages + values

            rollout = (actions.long(), log_probs, advantages, targets)
            flat = [observations.flatten(0, 1), *(one.flatten() for one in rollout)]
            order = np.arange(args.num_steps * args.num_envs)
            for _ in range(4):
                np.random.shuffle(order)
                for chosen in np.array_split(order, 4):
                    observation, action, old, advantage, target = (one[chosen] for one in flat)
                    _, log_prob, entropy, value = agent.act(observation, action)
                    ratio = (log_prob - old).exp()
                    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                    policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
                    loss = policy_loss - 0.01 * entropy.mean() + 0.25 * (value - target).pow(2).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                    optimizer.step()
            run.log(mean_return=sum(returns) / max(1, len(returns)), global_step=global_step)
            if returns and iteration % 10 == 9:
                print(f"{global_step} steps: mean return {sum(returns) / len(returns):.1f}")


if __name__ == "__main__":
    main()
