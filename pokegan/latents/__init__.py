"""Where latents come from, and the ways between them: priors, mixtures, walks, directions."""
