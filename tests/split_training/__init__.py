"""Models trained through the split over real nodes, against one machine: 100 steps each."""
