"""From a study's recommended configuration to a registered, exported model."""
