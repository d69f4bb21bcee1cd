-- What the Web Admin keeps. Times are milliseconds since the Unix epoch, UTC.

-- A site is one registration. Its name is free again after a revocation, its key and id never are.
CREATE TABLE sites (
    key              INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT    NOT NULL UNIQUE,
    name             TEXT    NOT NULL COLLATE NOCASE,
    created_at_ms    INTEGER NOT NULL,
    code_sha256      BLOB    NOT NULL,
    code_expires_ms  INTEGER NOT NULL,
    -- Of the registration that used the code: the very same one may be repeated, because a reply can get lost.
    request_sha256   BLOB,
    cluster_id       BLOB,
    cluster_name     TEXT,
    enrolled_at_ms   INTEGER,
    revoked_at_ms    INTEGER,
    last_message_ms  INTEGER,
    version          TEXT,
    members          INTEGER,
    alive            INTEGER,
    devices          INTEGER,
    units            INTEGER,
    pending          INTEGER
);
CREATE UNIQUE INDEX sites_by_name ON sites (name) WHERE revoked_at_ms IS NULL;
CREATE UNIQUE INDEX sites_by_cluster ON sites (cluster_id) WHERE revoked_at_ms IS NULL;

-- What outlives a registration: the outbox numbers and the epochs are the cluster's own.
CREATE TABLE clusters (
    cluster_id  BLOB    PRIMARY KEY,
    -- Everything through this outbox number is stored; NULL until the first batch.
    through     INTEGER,
    epoch       INTEGER NOT NULL DEFAULT 0,
    epoch_node  INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE nodes (
    site  INTEGER NOT NULL REFERENCES sites (key),
    node  INTEGER NOT NULL,
    name  TEXT    NOT NULL,
    PRIMARY KEY (site, node)
) WITHOUT ROWID;

-- The one live stream of a site. Cleared when the server starts.
CREATE TABLE links (
    site             INTEGER PRIMARY KEY REFERENCES sites (key),
    connection       INTEGER NOT NULL,
    node             INTEGER NOT NULL,
    epoch            INTEGER NOT NULL,
    mode             TEXT    NOT NULL,
    peer             TEXT    NOT NULL,
    since_ms         INTEGER NOT NULL,
    last_message_ms  INTEGER NOT NULL
);

-- One row a device with its latest reading; the columns are what lists filter and sort by.
CREATE TABLE devices (
    site           INTEGER NOT NULL REFERENCES sites (key),
    id             TEXT    NOT NULL,
    zone           TEXT    NOT NULL,
    unit           TEXT    NOT NULL,
    address        TEXT    NOT NULL,
    node           INTEGER NOT NULL,
    vendor         TEXT,
    model          TEXT,
    serial         TEXT,
    name           TEXT,
    location       TEXT,
    status         TEXT,
    total          INTEGER,
    -- The lowest percentage of any supply.
    lowest         INTEGER,
    first_seen_ms  INTEGER NOT NULL,
    metered_at_ms  INTEGER NOT NULL,
    reading        BLOB    NOT NULL,
    PRIMARY KEY (site, id)
) WITHOUT ROWID;

-- Every reading once, as the node that made it encoded it.
CREATE TABLE readings (
    key             INTEGER PRIMARY KEY,
    id              TEXT    NOT NULL UNIQUE,
    site            INTEGER NOT NULL REFERENCES sites (key),
    seq             INTEGER NOT NULL,
    device          TEXT    NOT NULL,
    unit            TEXT    NOT NULL,
    address         TEXT    NOT NULL,
    at_ms           INTEGER NOT NULL,
    node            INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,
    late            INTEGER NOT NULL,
    reading         BLOB    NOT NULL,
    received_at_ms  INTEGER NOT NULL
);
CREATE INDEX readings_by_device ON readings (site, device, at_ms);

-- An entry whose reading id is already taken by something else. Never expected; kept, so that nothing is lost.
CREATE TABLE conflicts (
    site            INTEGER NOT NULL REFERENCES sites (key),
    seq             INTEGER NOT NULL,
    id              TEXT    NOT NULL,
    entry           BLOB    NOT NULL,
    received_at_ms  INTEGER NOT NULL
);

CREATE TABLE jobs (
    key           INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT    NOT NULL UNIQUE,
    site          INTEGER NOT NULL REFERENCES sites (key),
    kind          TEXT    NOT NULL,
    argument      TEXT    NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('pending', 'sent', 'done', 'failed')),
    created_at_ms INTEGER NOT NULL,
    sent_at_ms    INTEGER,
    closed_at_ms  INTEGER,
    detail        TEXT
);
CREATE INDEX jobs_open ON jobs (site, key) WHERE state IN ('pending', 'sent');

-- Sites do not report these yet: the tables are here so that their listings answer.
CREATE TABLE alerts (
    key          INTEGER PRIMARY KEY,
    site         INTEGER NOT NULL REFERENCES sites (key),
    device       TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    raised_at_ms INTEGER NOT NULL,
    cleared_at_ms INTEGER
);
CREATE TABLE bundles (
    key            INTEGER PRIMARY KEY,
    site           INTEGER NOT NULL REFERENCES sites (key),
    name           TEXT    NOT NULL,
    octets         INTEGER NOT NULL,
    received_at_ms INTEGER NOT NULL
);

CREATE TABLE api_tokens (
    id             TEXT    PRIMARY KEY,
    secret_sha256  BLOB    NOT NULL,
    role           TEXT    NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    created_at_ms  INTEGER NOT NULL
) WITHOUT ROWID;
