-- `jobs_of_any_age` has all of it. Apart from the making of that one, so that waiting for readers does not undo it.

DROP INDEX IF EXISTS cliquet.jobs_newest;
