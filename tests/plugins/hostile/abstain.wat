;; Not hostile: abstains.
