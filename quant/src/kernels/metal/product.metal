// product
