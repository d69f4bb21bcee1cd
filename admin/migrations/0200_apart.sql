-- Reading ids are a cluster's own: two clusters whose ids begin alike must not take each other's, nor one say another's.
CREATE TABLE readings_apart (
    key             INTEGER PRIMARY KEY,
    cluster_id      BLOB    NOT NULL,
    id              TEXT    NOT NULL,
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
    received_at_ms  INTEGER NOT NULL,
    face            TEXT    NOT NULL DEFAULT '',
    UNIQUE (cluster_id, id)
);
INSERT INTO readings_apart
    SELECT r.key, coalesce(s.cluster_id, x''), r.id, r.site, r.seq, r.device, r.unit, r.address, r.at_ms, r.node,
           r.epoch, r.late, r.reading, r.received_at_ms, r.face
    FROM readings r JOIN sites s ON s.key = r.site;
DROP TABLE readings;
ALTER TABLE readings_apart RENAME TO readings;
CREATE INDEX readings_by_device ON readings (site, device, at_ms);
CREATE INDEX readings_by_face ON readings (site, face) WHERE face <> '';

-- What a human on site typed, over what the device says: also of a device of which no reading has come yet.
CREATE TABLE typed (
    site      INTEGER NOT NULL REFERENCES sites (key),
    device    TEXT    NOT NULL,
    name      TEXT,
    location  TEXT,
    asset     TEXT,
    PRIMARY KEY (site, device)
) WITHOUT ROWID;
INSERT INTO typed
    SELECT site, id, typed_name, typed_location, typed_asset FROM devices
    WHERE coalesce(typed_name, typed_location, typed_asset) IS NOT NULL;
ALTER TABLE devices DROP COLUMN typed_name;
ALTER TABLE devices DROP COLUMN typed_location;
ALTER TABLE devices DROP COLUMN typed_asset;
