"""How work units reach workers: Ray Tune runs them, the journal says what came of them."""
