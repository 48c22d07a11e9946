"""Adapters of the runtime for engines that run on many machines."""
