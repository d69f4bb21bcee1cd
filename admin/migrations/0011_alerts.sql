-- Alerts of the sites. The table of the first version was never filled: sites reported none.
DROP TABLE alerts;
CREATE TABLE alerts (
    site           INTEGER NOT NULL REFERENCES sites (key),
    -- The site's own, of one episode; unique for ever.
    id             TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    -- Empty where it is about a node, a unit or the cluster.
    device         TEXT    NOT NULL,
    subject        TEXT    NOT NULL,
    what           TEXT    NOT NULL,
    why            TEXT    NOT NULL,
    open           INTEGER NOT NULL,
    raises         INTEGER NOT NULL,
    raised_at_ms   INTEGER NOT NULL,
    cleared_at_ms  INTEGER NOT NULL,
    -- Rises with every change; what came late changes nothing.
    serial         INTEGER NOT NULL,
    received_at_ms INTEGER NOT NULL,
    PRIMARY KEY (site, id)
) WITHOUT ROWID;
CREATE INDEX alerts_by_time ON alerts (open, raised_at_ms);
