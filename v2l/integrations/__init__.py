"""v2l inside other engines, a thin module each: they are imported by those who have the engine, never by v2l."""
