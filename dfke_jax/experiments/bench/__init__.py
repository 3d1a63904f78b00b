"""What all recipes share: registry, settings, workbench, runs, results and how results are put together."""
