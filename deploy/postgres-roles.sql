-- Least privilege in Postgres: who migrates, who runs jobs, who enqueues them, who looks, who acts, who deletes what is old.
--
--   psql "$ADMIN_URL" -v ON_ERROR_STOP=1 -f deploy/postgres-roles.sql
--
-- As a superuser, or as one who may create roles and owns the database (and becomes a member of cliquet_owner by this), in
-- the database that holds the ledger: once before the first `cliquet migrate`, and again after each. It may be run at any
-- time, while workers work: it makes what is missing, takes away what is too much, all of it or nothing, and leaves everything
-- outside the schema `cliquet` alone. Only where a table changes its owner it waits for those who use the table, and gives up
-- after five seconds: then run it again.
--
-- The six roles are for membership and cannot log in. Programs log in as users of their own, which are members:
--
--   CREATE ROLE shop_worker   LOGIN PASSWORD '…' IN ROLE cliquet_worker;      -- cliquet work, cliquet doctor
--   CREATE ROLE shop_backend  LOGIN PASSWORD '…' IN ROLE cliquet_publisher;   -- enqueues jobs within its own transactions
--   CREATE ROLE shop_support  LOGIN PASSWORD '…' IN ROLE cliquet_reader;      -- cliquet jobs, show
--   CREATE ROLE shop_operator LOGIN PASSWORD '…' IN ROLE cliquet_operator;    -- cliquet jobs, show, retry, cancel, skip
--   CREATE ROLE shop_janitor  LOGIN PASSWORD '…' IN ROLE cliquet_pruner;      -- cliquet prune
--   GRANT cliquet_pruner TO shop_worker;                                      -- only with `prune_after` in its settings
--   GRANT cliquet_reader TO shop_worker;                                      -- only if people look at jobs through `work --http`
--   GRANT cliquet_operator TO shop_worker;                                    -- or act there
--   CREATE ROLE shop_migrator LOGIN PASSWORD '…' IN ROLE cliquet_owner;       -- cliquet migrate
--   ALTER ROLE shop_migrator SET role = 'cliquet_owner';                      -- so that the tables are cliquet_owner's
--
-- What handlers write through their transactions is yours: grant the worker's user what your own tables need.

BEGIN;
SET LOCAL lock_timeout = '5s';

-- 1. The roles. They belong to the whole server, so somebody may be making them for another database at this moment.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['cliquet_owner', 'cliquet_worker', 'cliquet_publisher', 'cliquet_reader', 'cliquet_operator', 'cliquet_pruner'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN
                    RAISE NOTICE 'the role % has just been made by somebody else', name;
            END;
        END IF;
    END LOOP;
    -- Only who is a member of the owner may give it things. (A superuser is of every role.)
    IF NOT pg_has_role(current_user, 'cliquet_owner', 'USAGE') THEN
        GRANT cliquet_owner TO CURRENT_USER;
    END IF;
END
$$;

-- 2. The owner. CREATE on the database is for the migrator's CREATE SCHEMA IF NOT EXISTS, which asks for it even if the
--    schema is there. What was migrated by another role becomes the owner's.

DO $$
DECLARE
    object record;
BEGIN
    EXECUTE format('GRANT CREATE ON DATABASE %I TO cliquet_owner', current_database());
    CREATE SCHEMA IF NOT EXISTS cliquet;
    IF (SELECT nspowner FROM pg_namespace WHERE nspname = 'cliquet') <> 'cliquet_owner'::regrole THEN
        ALTER SCHEMA cliquet OWNER TO cliquet_owner;
    END IF;
    -- ALTER … OWNER locks the table against everybody, so it is said only where it changes something.
    FOR object IN
        SELECT 'TABLE' AS kind, class.oid::regclass::text AS name
          FROM pg_class class WHERE class.relnamespace = 'cliquet'::regnamespace AND class.relkind IN ('r', 'p')
           AND class.relowner <> 'cliquet_owner'::regrole
        UNION ALL
        SELECT 'TYPE', type.oid::regtype::text
          FROM pg_type type WHERE type.typnamespace = 'cliquet'::regnamespace AND type.typtype IN ('e', 'd')
           AND type.typowner <> 'cliquet_owner'::regrole
        UNION ALL
        SELECT 'FUNCTION', proc.oid::regprocedure::text
          FROM pg_proc proc WHERE proc.pronamespace = 'cliquet'::regnamespace AND proc.proowner <> 'cliquet_owner'::regrole
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO cliquet_owner', object.kind, object.name);
    END LOOP;
END
$$;

-- 3. The schema. Without it none of the other rights is of any use.

REVOKE ALL ON SCHEMA cliquet FROM PUBLIC, cliquet_worker, cliquet_publisher, cliquet_reader, cliquet_operator, cliquet_pruner;
GRANT USAGE ON SCHEMA cliquet TO cliquet_worker, cliquet_publisher, cliquet_reader, cliquet_operator, cliquet_pruner;

-- 4. Migrations to come: between `cliquet migrate` and this file's next run a new table can be read by readers and operators,
--    and be read, added to and changed by workers, and a new function can be executed by workers, publishers and operators: it
--    may be one that checks each row that they write. (It runs with its caller's rights.) Then each is given exactly what it needs.

ALTER DEFAULT PRIVILEGES FOR ROLE cliquet_owner IN SCHEMA cliquet GRANT SELECT ON TABLES TO cliquet_reader, cliquet_operator;
ALTER DEFAULT PRIVILEGES FOR ROLE cliquet_owner IN SCHEMA cliquet GRANT SELECT, INSERT, UPDATE ON TABLES TO cliquet_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE cliquet_owner IN SCHEMA cliquet GRANT EXECUTE ON FUNCTIONS TO cliquet_worker, cliquet_publisher, cliquet_operator;
-- Everybody may execute a new function unless this is said for the owner as a whole.
ALTER DEFAULT PRIVILEGES FOR ROLE cliquet_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- 5. What is there now, exactly.

REVOKE ALL ON ALL TABLES IN SCHEMA cliquet FROM PUBLIC, cliquet_worker, cliquet_publisher, cliquet_reader, cliquet_operator, cliquet_pruner;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA cliquet FROM PUBLIC, cliquet_worker, cliquet_publisher, cliquet_reader, cliquet_operator, cliquet_pruner;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA cliquet FROM PUBLIC, cliquet_worker, cliquet_publisher, cliquet_reader, cliquet_operator, cliquet_pruner;

GRANT SELECT ON ALL TABLES IN SCHEMA cliquet TO cliquet_reader, cliquet_operator;

DO $$
BEGIN
    IF to_regclass('cliquet.workers') IS NULL THEN
        RAISE NOTICE 'cliquet is not migrated here yet: run `cliquet migrate` as a member of cliquet_owner, then this file again';
        RETURN;
    END IF;

    -- A worker makes jobs from messages and writes how they go on. It can change neither what a job is (its kind, payload
    -- and tasks) nor what has failed, and deletes nothing but the rows of workers that are long dead and what workers did hours ago.
    GRANT SELECT, INSERT ON cliquet.jobs, cliquet.tasks TO cliquet_worker;
    GRANT UPDATE (epoch, generation, sent, holder, started_at, finished_at, next_attempt_at, attempts, status, fingerprint, error)
        ON cliquet.jobs TO cliquet_worker;
    GRANT UPDATE (epoch, started_at, finished_at, attempt, crashes, status, result, error) ON cliquet.tasks TO cliquet_worker;
    GRANT INSERT ON cliquet.failures TO cliquet_worker;
    GRANT SELECT, INSERT, DELETE ON cliquet.workers TO cliquet_worker;
    GRANT UPDATE (locked_at, seen_at, stopped_at, cleared_at, brakes, succeeded, failed, in_hand, running)
        ON cliquet.workers TO cliquet_worker;
    GRANT SELECT, INSERT, UPDATE (succeeded, failed), DELETE ON cliquet.activity TO cliquet_worker;
    GRANT SELECT ON cliquet.migrations TO cliquet_worker;
    GRANT EXECUTE ON FUNCTION cliquet.succeed TO cliquet_worker;
    -- Postgres calls these for every row that is written, as the user who writes it.
    GRANT EXECUTE ON FUNCTION cliquet.job_is_whole, cliquet.task_is_whole TO cliquet_worker, cliquet_publisher, cliquet_operator;

    -- A publisher puts a job and its tasks in, within its own transaction, and reads nothing of others' jobs. That it sees
    -- the ids is for ON CONFLICT (id) DO NOTHING: the same id twice is one job.
    GRANT INSERT (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload), SELECT (id)
        ON cliquet.jobs TO cliquet_publisher;
    GRANT INSERT (job_id, position, handler, label, input, max_attempts, timeout_ms), SELECT (job_id, position)
        ON cliquet.tasks TO cliquet_publisher;

    -- An operator sees everything, ends jobs, takes a task for done, and writes down that he did. He can change neither what a
    -- job is (its kind, payload and tasks) nor what was done before (results, failures, who acted and when), makes no job, and
    -- deletes nothing. A worker that lets
    -- people act over HTTP does so as its own user, who has to be a member of this role, too.
    GRANT UPDATE (epoch, generation, sent, holder, finished_at, next_attempt_at, status, error) ON cliquet.jobs TO cliquet_operator;
    GRANT UPDATE (epoch, started_at, finished_at, attempt, status, error) ON cliquet.tasks TO cliquet_operator;
    GRANT INSERT (job_id, position, act, operator, reason) ON cliquet.interventions TO cliquet_operator;

    -- A pruner deletes, and sees no more of a job than how old it is: neither payloads nor results. Postgres cannot be told
    -- here that it may delete only what is over; that is why no worker has this right unless it is given.
    GRANT DELETE, SELECT (id, created_at, finished_at, generation, sent, total, status, queue) ON cliquet.jobs TO cliquet_pruner;
    GRANT DELETE, SELECT (job_id) ON cliquet.tasks, cliquet.failures, cliquet.interventions TO cliquet_pruner;
    GRANT DELETE, SELECT (cleared_at, seen_at, queue) ON cliquet.workers TO cliquet_pruner;
    GRANT SELECT ON cliquet.migrations TO cliquet_pruner;
END
$$;

COMMIT;
