"""From labelled spikes to a model: training sets, patches, templates, training, thresholds, transfer."""
