-- The constraints of the migration before, for the rows that were there already. Nobody is kept from writing meanwhile.

ALTER TABLE cliquet.jobs VALIDATE CONSTRAINT columns_belong_together;
ALTER TABLE cliquet.tasks VALIDATE CONSTRAINT columns_belong_together;
