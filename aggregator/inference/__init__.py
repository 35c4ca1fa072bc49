"""The recipe of whole models: deployed in parts over the fleet, and asked."""
