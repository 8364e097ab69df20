"""Results on disk: measures of their units and spikes, comparison with the truth, report and exports."""
