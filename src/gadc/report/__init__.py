"""`gadc report`: what runs wrote, as one HTML file that needs no network.

`reading` opens the folders, `geometry` looks at the features, `thumbnails` at the images; `views`
puts into words and numbers what the templates in `page/` show, `document` makes one file of it.
"""
