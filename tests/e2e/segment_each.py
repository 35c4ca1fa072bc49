"""An aggregator that begins a segment at each append but to the context's last, as releases before did."""

from __future__ import annotations

from aggregator.attention import growing
from aggregator.main import main

growing.STRETCHES = 1

if __name__ == "__main__":
    main()
