-- From version 2 to 3: what the server said again is marked, and found fast.

ALTER TABLE settlements ADD COLUMN replayed INTEGER NOT NULL DEFAULT 0 CHECK (replayed IN (0, 1));
CREATE INDEX settlements_in_doubt ON settlements (attempt) WHERE billed = 'maybe';
CREATE INDEX settlements_replayed ON settlements (attempt) WHERE replayed = 1;
CREATE VIEW told_again AS
  SELECT min(doubts.attempt) AS attempt
  FROM settlements AS doubts JOIN attempts ON attempts.id = doubts.attempt
  WHERE doubts.billed = 'maybe' AND attempts.key IN (
    SELECT replays.key FROM settlements JOIN attempts AS replays ON replays.id = settlements.attempt
    WHERE settlements.replayed = 1 AND settlements.billed <> 'maybe'
  )
  GROUP BY attempts.key;
