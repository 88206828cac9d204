"""The maintenance switch: page, script, state, proof; and the drain that follows it."""
