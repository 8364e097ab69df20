"""Export of a result to other tools: Phy, NWB, a SortingAnalyzer of SpikeInterface."""
