"""How far each unit can be trusted: known spikes are added to the recording, sorted again and counted."""
