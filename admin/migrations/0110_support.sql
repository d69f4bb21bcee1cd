-- When its cluster said that it has no such member any more. Ids are never used again, so that is for ever.
ALTER TABLE nodes ADD COLUMN removed_at_ms INTEGER;

-- A bundle is what one job brought: its file is `bundles/ID.tar.zst` in the data directory.
DROP TABLE bundles;
CREATE TABLE bundles (
    key            INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The job's id.
    id             TEXT    NOT NULL UNIQUE,
    site           INTEGER NOT NULL REFERENCES sites (key),
    octets         INTEGER NOT NULL,
    sha256         BLOB    NOT NULL,
    received_at_ms INTEGER NOT NULL
);
