"""Messages of the Open Inference Protocol, compiled under a package of ours: `tritonclient` has its own."""
