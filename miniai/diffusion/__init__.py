"""Floor 3: noise schedules, parametrisations, samplers, guidance, training objectives."""
