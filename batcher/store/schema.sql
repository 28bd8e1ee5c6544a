-- One job's store. Rows are only ever added (but for a row's place in the file, and an outcome that is to be
-- had again), in the order in which things happen, so every table grows at its end. A state is never
-- written down twice: an attempt without a settlement is claimed, a row without an outcome is pending.

CREATE TABLE job (
  id         INTEGER PRIMARY KEY CHECK (id = 1),
  namespace  TEXT NOT NULL CHECK (namespace <> ''),  -- what idempotency keys are made with
  base_url   TEXT NOT NULL,
  created_at REAL NOT NULL,                          -- seconds since 1970, like every time here
  pid        INTEGER,                                -- the process that holds the lock, or held it last
  line_count INTEGER CHECK (line_count >= 0)         -- rows in the job file, when it was last read to its end
) STRICT;

CREATE TABLE rows (
  id        INTEGER PRIMARY KEY,
  seq       INTEGER UNIQUE CHECK (seq >= 1),         -- the line in the job file; NULL: no longer in it
  key       BLOB NOT NULL CHECK (length(key) = 16),
  custom_id TEXT NOT NULL
) STRICT;

CREATE TABLE attempts (
  id                  INTEGER PRIMARY KEY,
  rows                TEXT NOT NULL,                 -- a JSON array of rows.id: the rows packed together
  key                 TEXT NOT NULL CHECK (length(key) BETWEEN 1 AND 64),
  number              INTEGER NOT NULL CHECK (number >= 1),  -- of the request, within its run
  model               TEXT NOT NULL,
  claimed_at          REAL NOT NULL,
  tokens              INTEGER NOT NULL CHECK (tokens >= 0),  -- reserved at admission
  worst_cost_pico_usd INTEGER CHECK (worst_cost_pico_usd >= 0)  -- NULL: no bound, or no price
) STRICT;

CREATE TABLE settlements (
  attempt           INTEGER PRIMARY KEY REFERENCES attempts (id),
  billed            TEXT NOT NULL CHECK (billed IN ('no', 'maybe', 'yes')),
  sent_at           REAL,                            -- NULL: it never left, or nobody knows
  ended_at          REAL NOT NULL,
  status            INTEGER,                         -- NULL: no reply
  error             TEXT,                            -- a word of the verdict table; NULL: an answer
  request_id        TEXT,
  prompt_tokens     INTEGER NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
  cached_tokens     INTEGER NOT NULL DEFAULT 0 CHECK (cached_tokens BETWEEN 0 AND prompt_tokens),
  completion_tokens INTEGER NOT NULL DEFAULT 0 CHECK (completion_tokens >= 0),
  cost_pico_usd     INTEGER CHECK (cost_pico_usd >= 0),  -- NULL: the price is unknown
  replayed          INTEGER NOT NULL DEFAULT 0 CHECK (replayed IN (0, 1)),  -- 1: the server said it again
  CHECK (error IS NOT NULL OR (billed = 'yes' AND status IS NOT NULL)),
  CHECK (billed = 'yes' OR cost_pico_usd IS 0)
) STRICT;

-- Few are either, and a run begins by looking for them.
CREATE INDEX settlements_in_doubt ON settlements (attempt) WHERE billed = 'maybe';
CREATE INDEX settlements_replayed ON settlements (attempt) WHERE replayed = 1;

-- What was in doubt, and came again: the server has said what it did under this key, and what that cost. That is one
-- attempt of it; another may have been worked on beside it, where the server heeds only keys that have ended.
CREATE VIEW told_again AS
  SELECT min(doubts.attempt) AS attempt
  FROM settlements AS doubts JOIN attempts ON attempts.id = doubts.attempt
  WHERE doubts.billed = 'maybe' AND attempts.key IN (
    SELECT replays.key FROM settlements JOIN attempts AS replays ON replays.id = settlements.attempt
    WHERE settlements.replayed = 1 AND settlements.billed <> 'maybe'
  )
  GROUP BY attempts.key;

CREATE TABLE outcomes (
  row        INTEGER PRIMARY KEY REFERENCES rows (id),
  state      TEXT NOT NULL CHECK (state IN ('done', 'refused', 'exhausted', 'in_doubt')),
  attempt    INTEGER REFERENCES attempts (id),       -- NULL: a line that never became a request
  status     INTEGER,
  request_id TEXT,
  body       BLOB,
  code       TEXT,
  message    TEXT,
  line       BLOB,                                   -- the row in the Batch input form, to run it again
  finish     TEXT CHECK (finish IN ('length', 'content_filter')),  -- why an answer ended early; NULL: it did not
  CHECK ((state = 'done') = (code IS NULL)),
  CHECK (state <> 'done' OR (attempt IS NOT NULL AND status IS NOT NULL AND body IS NOT NULL)),
  CHECK ((code IS NULL) = (message IS NULL)),
  CHECK (finish IS NULL OR state = 'done')
) STRICT;
