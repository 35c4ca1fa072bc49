"""What each axis of a model is, by what operators do to it; and the segments a plan cuts a model into."""
