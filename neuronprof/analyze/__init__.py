"""Analyzers: each maps the events of one chip to a small table and combines two such tables."""
