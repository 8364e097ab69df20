"""The experiments of E-Sort (Han & Wang, arXiv 2409.13067): plan, runs, scores, tables, page."""
