"""Which plan cuts a model best over the boxes that are there: what each would take, and the search for it."""
