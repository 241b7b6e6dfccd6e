"""SAM (p = 2) as fast as PyTorch lets a user write it: each operation is one multi-tensor call over all parameters."""
import torch


class Sam:
    """Perturbs parameters along their gradients, and restores them from a copy."""

    def __init__(self, parameters, rho):
        self.parameters = list(parameters)
        self.rho = rho
        self.copies = [torch.empty_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def perturb(self):
        """w ← w + ρ g / ‖g‖. The gradients become ε̂: they are not needed any more."""
        torch._foreach_copy_(self.copies, self.parameters)
        gradients = [parameter.grad for parameter in self.parameters]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        torch._foreach_mul_(gradients, self.rho / (norm + 1e-12))
        torch._foreach_add_(self.parameters, gradients)

    @torch.no_grad()
    def restore(self):
        torch._foreach_copy_(self.parameters, self.copies)

    def step(self, backward, optimizer):
        """A whole training step. `backward` computes the loss and its gradients; returns the loss at w."""
        loss = backward()
        self.perturb()
        optimizer.zero_grad()
        backward()
        self.restore()
        optimizer.step()
        optimizer.zero_grad()
        return loss
