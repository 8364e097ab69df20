"""A result for other tools: Phy, NWB, a SortingAnalyzer of SpikeInterface."""
