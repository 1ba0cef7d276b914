"""One trainer for every game: losses, phases, callbacks, checkpoints, schedules, several processes."""
