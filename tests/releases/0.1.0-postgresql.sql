CREATE TABLE public.users (
    id bigint NOT NULL,
    name character varying(100) NOT NULL,
    email character varying(254) NOT NULL,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    version integer NOT NULL,
    name_key character varying(255) NOT NULL COLLATE pg_catalog."C",
    email_key character varying(255) NOT NULL COLLATE pg_catalog."C"
);
CREATE SEQUENCE public.users_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.users_id_seq OWNED BY public.users.id;
ALTER TABLE ONLY public.users ALTER COLUMN id SET DEFAULT nextval('public.users_id_seq'::regclass);
INSERT INTO public.users VALUES (1, 'Ada Lovelace', 'Ada@example.com', '2026-11-22 23:55:58.517+00', '2026-11-22 23:55:58.517+00', 1, 'ada lovelace', 'ada@example.com');
INSERT INTO public.users VALUES (4, 'Zoë 😀 O''Straße', 'zoë@example.com', '2026-11-22 23:55:58.538+00', '2026-11-22 23:55:58.538+00', 1, 'zoë 😀 o''strasse', 'zoë@example.com');
INSERT INTO public.users VALUES (2, 'Grace Brewster Hopper', 'grace@example.com', '2026-11-22 23:55:58.528+00', '2026-11-22 23:55:58.546+00', 2, 'grace brewster hopper', 'grace@example.com');
SELECT pg_catalog.setval('public.users_id_seq', 4, true);
ALTER TABLE ONLY public.users
    ADD CONSTRAINT uq_users_email_key UNIQUE (email_key);
ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);
CREATE INDEX ix_users_name_key_id ON public.users USING btree (name_key, id);
