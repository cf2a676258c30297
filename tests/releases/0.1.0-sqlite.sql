CREATE TABLE users (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	name VARCHAR(100) NOT NULL,
	email VARCHAR(254) NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	version INTEGER NOT NULL,
	name_key VARCHAR(255) NOT NULL,
	email_key VARCHAR(255) NOT NULL,
	CONSTRAINT uq_users_email_key UNIQUE (email_key)
);
INSERT INTO "users" VALUES(1,'Ada Lovelace','Ada@example.com','2026-11-22 23:55:57.358000','2026-11-22 23:55:57.358000',1,'ada lovelace','ada@example.com');
INSERT INTO "users" VALUES(2,'Grace Brewster Hopper','grace@example.com','2026-11-22 23:55:57.364000','2026-11-22 23:55:57.377000',2,'grace brewster hopper','grace@example.com');
INSERT INTO "users" VALUES(4,'Zoë 😀 O''Straße','zoë@example.com','2026-11-22 23:55:57.370000','2026-11-22 23:55:57.370000',1,'zoë 😀 o''strasse','zoë@example.com');
CREATE INDEX ix_users_name_key_id ON users (name_key, id);
UPDATE sqlite_sequence SET seq = 4 WHERE name = 'users';
