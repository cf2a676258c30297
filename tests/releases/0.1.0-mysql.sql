CREATE TABLE `users` (
  `id` bigint(20) NOT NULL AUTO_INCREMENT,
  `name` varchar(100) NOT NULL,
  `email` varchar(254) NOT NULL,
  `created_at` datetime(3) NOT NULL,
  `updated_at` datetime(3) NOT NULL,
  `version` int(11) NOT NULL,
  `name_key` varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  `email_key` varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `uq_users_email_key` (`email_key`),
  KEY `ix_users_name_key_id` (`name_key`,`id`)
) ENGINE=InnoDB AUTO_INCREMENT=5 DEFAULT CHARSET=utf8mb4;
INSERT INTO `users` VALUES (1,'Ada Lovelace','Ada@example.com','2026-11-22 23:55:59.666','2026-11-22 23:55:59.666',1,'ada lovelace','ada@example.com');
INSERT INTO `users` VALUES (2,'Grace Brewster Hopper','grace@example.com','2026-11-22 23:55:59.673','2026-11-22 23:55:59.690',2,'grace brewster hopper','grace@example.com');
INSERT INTO `users` VALUES (4,'Zoë 😀 O\'Straße','zoë@example.com','2026-11-22 23:55:59.681','2026-11-22 23:55:59.681',1,'zoë 😀 o\'strasse','zoë@example.com');
